from mfac_compress.export import machine_load


def test_the_machine_has_a_name_cores_and_a_load():
    found = machine_load()
    assert found.cpu
    assert found.cores >= 1
    assert found.load_1min >= 0
