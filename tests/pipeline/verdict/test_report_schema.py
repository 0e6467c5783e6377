"""The report's JSON Schema says what every field is: its readers have nothing else."""

from mfac_compress.pipeline.verdict.report import Report


def test_every_field_has_a_description():
    schema = Report.model_json_schema()
    parts = {**schema["$defs"], "Report": schema}
    bare = [
        f"{name}.{key}"
        for name, part in parts.items()
        for key, value in part["properties"].items()
        if not value.get("description") and "$ref" not in value  # then that part has one
    ]
    assert bare == []
    assert all(part.get("description") for part in parts.values())
