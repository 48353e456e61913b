"""Sentences of the pages, made from settings and tables."""

from deeplight_core.config import Profile
from deeplight_core.sweeps import planned

__all__ = ["make_command", "missing_note"]


_DATA = {"haxby": "haxby2001-vt", "haxby-slice": "haxby2001-slice", "paper": "hcp"}


def make_command(target: str, profile: str) -> str:
    """The command that makes a profile's pages."""
    data = f" DATA=/path/to/{_DATA[profile]}" if profile in _DATA else ""
    return f"make {target} PROFILE={profile}{data}"


def missing_note(profile: Profile, name: str, missing: list[str]) -> str:
    """One line of Markdown: what a page is made of, and what of its grid has not been run and how to run it."""
    n = len(planned(profile, name))
    if not missing:
        return f"All {n} runs of this grid are here." if n else "This profile has no runs for this page."
    command = make_command("reproduce" if name == "sweep" else "controls", profile.name)
    return (
        f"**{len(missing)} of the {n} runs of this grid have not been run**; what is here is shown. `{command}` runs "
        f"the rest: {', '.join(f'`{m}`' for m in missing)}. Decoders are compared over the seeds that they share."
    )
