"""Table 1 of Thomas, Müller & Samek (2019) as data: the seven HCP tasks, their states, event files and timing.

Durations are those of the HCP protocol (Barch et al. 2013); frame counts are those of the released runs at
TR 0.72 s. Nothing is read from disk. `BATTERY` is a run after the Multi-Domain Task Battery (King et al. 2019), for
simulated data only.
"""

from dataclasses import dataclass

__all__ = ["BATTERY", "HCP_TR_S", "SOURCE_TASKS", "TARGET_TASK", "TASKS", "Task"]

HCP_TR_S = 0.72


@dataclass(frozen=True)
class Task:
    """One HCP task.

    states : decoding target → stems of the EV files (three-column text) whose blocks are pooled for it
    other_evs : stems of other EV files in the folder, ignored on purpose
    n_frames : frames of one run at TR 0.72 s
    block_s, n_blocks : the protocol's block length in seconds and blocks per run, as counted in Table 1
    """

    states: dict[str, tuple[str, ...]]
    other_evs: tuple[str, ...]
    n_frames: int
    block_s: float
    n_blocks: int

    @property
    def table1_duration_s(self) -> float:
        """Seconds per subject in Table 1: block length × blocks × 2 runs."""
        return self.block_s * self.n_blocks * 2


TASKS: dict[str, Task] = {
    "WM": Task(
        states={
            "body": ("0bk_body", "2bk_body"),
            "face": ("0bk_faces", "2bk_faces"),
            "place": ("0bk_places", "2bk_places"),
            "tool": ("0bk_tools", "2bk_tools"),
        },
        other_evs=(
            "0bk_cor", "0bk_err", "0bk_nlr", "2bk_cor", "2bk_err", "2bk_nlr", "all_bk_cor", "all_bk_err",
        ),
        n_frames=405, block_s=25, n_blocks=8,
    ),
    "GAMBLING": Task(
        states={"win": ("win_event",), "loss": ("loss_event",), "neutral": ("neut_event",)},
        other_evs=("win", "loss"),
        n_frames=253, block_s=28, n_blocks=4,
    ),
    "MOTOR": Task(
        states={
            "left finger": ("lh",),
            "right finger": ("rh",),
            "left toe": ("lf",),
            "right toe": ("rf",),
            "tongue": ("t",),
        },
        other_evs=("cue",),
        n_frames=284, block_s=12, n_blocks=13,  # Table 1 counts the three fixation blocks
    ),
    "LANGUAGE": Task(
        states={"story": ("story",), "math": ("math",)},
        other_evs=(
            "cue", "present_math", "present_story", "question_math", "question_story", "response_math",
            "response_story",
        ),
        n_frames=316, block_s=30, n_blocks=8,
    ),
    "SOCIAL": Task(
        states={"interaction": ("mental",), "no interaction": ("rnd",)},
        other_evs=("mental_resp", "other_resp"),
        n_frames=274, block_s=20, n_blocks=5,
    ),
    "RELATIONAL": Task(
        states={"relational": ("relation",), "matching": ("match",)},
        other_evs=("error",),
        n_frames=232, block_s=18, n_blocks=6,
    ),
    "EMOTION": Task(
        states={"fear": ("fear",), "neutral": ("neut",)},
        other_evs=(),
        n_frames=176, block_s=21, n_blocks=6,
    ),
}  # fmt: skip

# Thirteen tasks of its set a, 30 s each after 5 s of instruction.
_THIRTEEN = (
    "objects", "motor imagery", "stroop", "verbal 2-back", "interval timing", "arithmetic", "affective scenes",
    "emotional faces", "go-no-go", "theory of mind", "motor sequence", "action observation", "visual search",
)  # fmt: skip
BATTERY = Task({name: (name,) for name in _THIRTEEN}, (), n_frames=round(13 * 35 / HCP_TR_S), block_s=30, n_blocks=13)

TARGET_TASK = "WM"
SOURCE_TASKS = tuple(name for name in TASKS if name != TARGET_TASK)
