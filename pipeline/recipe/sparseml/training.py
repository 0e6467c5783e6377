"""Training modifiers of SparseML, said in our section recover."""

from collections.abc import Sequence
from dataclasses import dataclass

from mfac_compress.pipeline.recipe.sparseml.document import Modifier
from mfac_compress.pipeline.recipe.sparseml.findings import Fate, Translation
from mfac_compress.pipeline.recipe.sparseml.timeline import Timeline

_COURSES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "cyclic_linear": "linear",
    "cyclic_cosine": "cosine",
}
_LOGS = "constant_logging log_types"
_COURSE_KEYS = "start_epoch end_epoch final_lr cycle_epochs update_frequency lr_kwargs"
_EACH_STEP = "Each stretch of training, after each step and at the end, has a course of its own"


@dataclass(frozen=True)
class _Course:
    """A learning rate's way.

    Args:
        modifier: Where it stands.
        key: Of its first learning rate.
        start: Its first epoch.
        end: Its last epoch.
        lr: Learning rate at the start; at the end where it rises.
        schedule: Ours.
        but: What differs.
    """

    modifier: Modifier
    key: str
    start: float
    end: float
    lr: float
    schedule: str
    but: str


def translate_training(
    modifiers: Sequence[Modifier], timeline: Timeline, translation: Translation
) -> None:
    """Say how long is trained, and with which learning rate and weight decay.

    Args:
        modifiers: All of the recipe.
        timeline: When it prunes.
        translation: Gets the section.
    """
    _epochs(modifiers, timeline, translation)
    _learning_rate(modifiers, timeline, translation)
    decays = [modifier for modifier in modifiers if modifier.name == "SetWeightDecayModifier"]
    for modifier in decays:
        late = max(0.0, modifier.values["start_epoch"]) > timeline.start or len(decays) > 1
        but = "From the start to the end; the last one counts" if late else ""
        value = modifier.values["weight_decay"]
        translation.put(modifier, "weight_decay", "recover.weight_decay", value, but)
        fate, text = (Fate.NEARLY if but else Fate.MAPPED), "see recover.weight_decay"
        translation.note_given(modifier, "start_epoch end_epoch", fate, text)
        _common(modifier, translation)


def _epochs(modifiers: Sequence[Modifier], timeline: Timeline, translation: Translation) -> None:
    ranges = [modifier for modifier in modifiers if modifier.name == "EpochRangeModifier"]
    said = f"of {timeline.total:g} epochs, those after the last pruning step at {timeline.end:g}"
    whole = timeline.epochs_after == timeline.total - timeline.end
    if not ranges and timeline.epochs_after:
        last = max(modifiers, key=lambda modifier: modifier.values.get("end_epoch") or -1.0)
        but = "" if whole else "Rounded up to whole epochs"
        epochs = timeline.epochs_after
        translation.put(last, "end_epoch", "recover.epochs", epochs, but, said.capitalize())
    for modifier in ranges:
        text = "training starts with the first pruning step"
        translation.note_given(modifier, "start_epoch", Fate.NOT_NEEDED, text)
        if timeline.one_shot:
            text = "nothing is trained"
            translation.note(modifier, "end_epoch", Fate.NOT_NEEDED, text)
            continue
        but = "" if whole else "Rounded up to whole epochs"
        epochs = timeline.epochs_after
        translation.put(modifier, "end_epoch", "recover.epochs", epochs, but, said.capitalize())


def _learning_rate(
    modifiers: Sequence[Modifier], timeline: Timeline, translation: Translation
) -> None:
    courses = [course for modifier in modifiers for course in _course(modifier, timeline)]
    if not courses:
        return
    best = max(courses, key=lambda course: _overlap(course, timeline))
    for course in courses:
        modifier, key = course.modifier, course.key
        fate = Fate.NEARLY if course.but or course is not best else Fate.MAPPED
        translation.note_given(modifier, _COURSE_KEYS, fate, "see recover.schedule")
        if course is not best:
            text = f"one course counts, that of line {best.modifier.line}, which lasts longest"
            translation.note(modifier, key, Fate.NEARLY, text)
            given = "lr_func lr_class"
            translation.note_given(modifier, given, Fate.NEARLY, "see recover.schedule")
        elif course.lr <= 0:
            text = "a learning rate that is always 0 trains nothing. Set recover.lr"
            translation.note(modifier, key, Fate.DROPPED, text)
        else:
            translation.put(modifier, key, "recover.lr", course.lr)
            given = next((k for k in ("lr_func", "lr_class") if k in modifier.values), key)
            translation.put(modifier, given, "recover.schedule", course.schedule, course.but)
        _common(modifier, translation)


def _overlap(course: _Course, timeline: Timeline) -> float:
    end = timeline.total if course.end < 0 else course.end
    return min(end, timeline.total) - max(course.start, timeline.start)


def _course(modifier: Modifier, timeline: Timeline) -> list[_Course]:
    values = modifier.values
    if modifier.name == "SetLearningRateModifier":
        start = max(0.0, values["start_epoch"])
        rate = values["learning_rate"]
        return [_Course(modifier, "learning_rate", start, -1.0, rate, "constant", "")]
    if modifier.name == "LearningRateModifier":
        but = "It falls along a cosine, where SparseML's falls by a factor now and then"
        start, end = max(0.0, values["start_epoch"]), values["end_epoch"]
        return [_Course(modifier, "init_lr", start, end, values["init_lr"], "cosine", but)]
    if modifier.name != "LearningRateFunctionModifier":
        return []
    start, end = max(0.0, values["start_epoch"]), values["end_epoch"]
    first, last = values["init_lr"], values["final_lr"]
    schedule = _COURSES.get(values["lr_func"], "cosine")
    but = _differs(modifier, timeline)
    return [_Course(modifier, "init_lr", start, end, max(first, last), schedule, but)]


def _differs(modifier: Modifier, timeline: Timeline) -> str:
    """What our course has other than a learning-rate function of SparseML's."""
    values = modifier.values
    function, first, last = values["lr_func"], values["init_lr"], values["final_lr"]
    said = []
    if function == "constant":
        return ""
    if function not in _COURSES:
        said.append(f"It falls along a cosine, not as {function}")
    if last > first:
        said.append("It starts at the higher rate, without a warm-up")
    elif last > 0:
        said.append("It falls to 0")
    cyclic = function.startswith("cyclic")
    cycle = values["cycle_epochs"] if cyclic else values["end_epoch"] - values["start_epoch"]
    stretches = {timeline.epochs_after} - {0}
    if timeline.steps > 1:
        stretches.add(timeline.epochs_between)
    if stretches != {cycle}:
        said.append(_EACH_STEP)
    return ". ".join(said)


def _common(modifier: Modifier, translation: Translation) -> None:
    """Keys that training modifiers share."""
    translation.note_given(modifier, _LOGS, Fate.NOT_NEEDED, "the report shows the course")
    if modifier.values.get("param_groups"):
        text = "all parameters have one learning rate and one weight decay"
        translation.note(modifier, "param_groups", Fate.DROPPED, text)
