import pytest

from deeplight_core.tasks import HCP_TR_S, SOURCE_TASKS, TARGET_TASK, TASKS, Task

TABLE_1_S = {
    "WM": 400, "GAMBLING": 224, "MOTOR": 312, "LANGUAGE": 480, "SOCIAL": 200, "RELATIONAL": 216, "EMOTION": 252,
}  # fmt: skip
FRAMES = {
    "WM": 405, "GAMBLING": 253, "MOTOR": 284, "LANGUAGE": 316, "SOCIAL": 274, "RELATIONAL": 232, "EMOTION": 176,
}  # fmt: skip
tasks = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def test_durations_are_those_of_table_1() -> None:
    assert {name: task.table1_duration_s for name, task in TASKS.items()} == TABLE_1_S
    assert sum(task.table1_duration_s for task in TASKS.values()) == 2084


def test_frames_are_those_of_the_released_runs() -> None:
    assert {name: task.n_frames for name, task in TASKS.items()} == FRAMES
    assert HCP_TR_S == 0.72


def test_twenty_states_sixteen_to_pretrain_on_and_four_to_decode() -> None:
    assert TARGET_TASK == "WM"
    assert (*SOURCE_TASKS, TARGET_TASK) == (*(name for name in TASKS if name != "WM"), "WM")
    assert sum(len(TASKS[name].states) for name in SOURCE_TASKS) == 16
    assert sum(len(task.states) for task in TASKS.values()) == 20


def test_working_memory_pools_both_loads() -> None:
    assert TASKS["WM"].states == {
        "body": ("0bk_body", "2bk_body"),
        "face": ("0bk_faces", "2bk_faces"),
        "place": ("0bk_places", "2bk_places"),
        "tool": ("0bk_tools", "2bk_tools"),
    }


def test_motor_has_five_movements_and_no_cue() -> None:
    assert [ev for evs in TASKS["MOTOR"].states.values() for ev in evs] == ["lh", "rh", "lf", "rf", "t"]
    assert TASKS["MOTOR"].states["left toe"] == ("lf",)  # the f is for foot, not finger
    assert TASKS["MOTOR"].other_evs == ("cue",)


def test_gambling_is_labelled_by_trials_not_by_blocks() -> None:
    assert TASKS["GAMBLING"].states == {"win": ("win_event",), "loss": ("loss_event",), "neutral": ("neut_event",)}
    assert TASKS["GAMBLING"].other_evs == ("win", "loss")


@tasks
def test_an_ev_file_has_one_meaning(task: Task) -> None:
    evs = [ev for evs in task.states.values() for ev in evs] + [*task.other_evs]
    assert len(evs) == len(set(evs))


@tasks
def test_a_task_cannot_be_changed(task: Task) -> None:
    with pytest.raises(AttributeError):
        task.n_frames = 1  # type: ignore[misc]
