"""What is played: the conversions of the demo, and what must be told of each.

Responsible for: one list. Pure data. It must not start, watch or judge anything. What must become of a file is not said
here: that is the rule of the simulator's ledger.
"""

from dataclasses import dataclass

import msgspec

from shared.vendors import Vendor
from simulator.plan import Fault, FilePlan, Plan, Shape, Sign, Step
from simulator.wavs import Flavour

STORED = "conversion.stored"
REJECTED = "conversion.rejected"
CONFLICTING = "conversion.conflicting"
UNRECOGNISED = "report.unrecognised"

_APART_S = 0.35
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Act:
    """One conversion.

    Attributes:
        plan: with a task id that people can read.
        story: what is special about it, in a few words.
        told: the events that every destination must hear of it, each exactly once.
    """

    plan: Plan
    story: str
    told: tuple[str, ...] = (STORED,)


def script() -> tuple[Act, ...]:
    """Return the conversions in the order in which they begin, a moment apart."""
    acts = (*_good(), *_repeated_and_contradicted(), *_not_good())
    return tuple(
        Act(msgspec.structs.replace(act.plan, delay_s=_APART_S * number), act.story, act.told)
        for number, act in enumerate(acts)
    )


def _good() -> tuple[Act, ...]:
    dripping = Fault(bytes_per_s=12 * _MB)
    return (
        Act(_plan(Vendor.KIE, "plain-16-bit", FilePlan(duration_s=30)), "a plain WAV, signed by kie"),
        Act(
            _plan(
                Vendor.APIBOX,
                "long-rf64",
                FilePlan(flavour=Flavour.RF64, size_bytes=64 * _MB, misbehaviour=(dripping,)),
            ),
            "a large file over a slow line",
        ),
        Act(_plan(Vendor.SUNOAPI, "studio-24-bit", FilePlan(flavour=Flavour.PCM24, duration_s=20)), "24 bits"),
        Act(_plan(Vendor.APIBOX, "mix-in-float", FilePlan(flavour=Flavour.FLOAT32, duration_s=12)), "32-bit float"),
        Act(
            _plan(Vendor.KIE, "space-in-link", FilePlan(flavour=Flavour.EXTENSIBLE, duration_s=10, spaced_name=True)),
            "its link holds a raw space",
        ),
    )


def _repeated_and_contradicted() -> tuple[Act, ...]:
    song = FilePlan(duration_s=15)
    failure, success = Step(outcome="failed"), Step()
    return (
        Act(_plan(Vendor.SUNOAPI, "called-three-times", song, copies=3), "three callbacks at one moment"),
        Act(
            _plan(Vendor.KIE, "failed-then-fine", song, steps=(failure, Step(delay_s=1.5))),
            "a failure, healed by a success",
            (REJECTED, STORED),
        ),
        Act(
            _plan(Vendor.APIBOX, "two-answers", song, song, steps=(success, Step(file=1, delay_s=1.5))),
            "another file for a stored task",
            (STORED, CONFLICTING),
        ),
        Act(
            _plan(Vendor.SUNOAPI, "host-says-503", FilePlan(duration_s=18, misbehaviour=(Fault(times=1, status=503),))),
            "its host answers 503 once",
        ),
    )


def _not_good() -> tuple[Act, ...]:
    return (
        Act(_plan(Vendor.SUNOAPI, "vendor-failed", steps=(Step(outcome="failed"),)), "the vendor failed", (REJECTED,)),
        Act(
            _plan(Vendor.APIBOX, "telephone-codec", FilePlan(flavour=Flavour.ALAW, duration_s=5)),
            "no PCM: kept out at once",
            (REJECTED,),
        ),
        Act(
            _plan(Vendor.KIE, "two-files-in-one", FilePlan(flavour=Flavour.SECOND_FILE, size_bytes=2 * _MB)),
            "a second file behind the first",
            (REJECTED,),
        ),
        Act(
            _plan(Vendor.KIE, "music-not-wav", shape=Shape.MUSIC),
            "an unknown shape, for replay",
            (UNRECOGNISED,),
        ),
        Act(_plan(Vendor.KIE, "forged", sign=Sign.WRONG), "a wrong signature: not believed", ()),
    )


def _plan(
    vendor: Vendor,
    task_id: str,
    *files: FilePlan,
    steps: tuple[Step, ...] = (Step(),),
    copies: int = 1,
    shape: Shape | None = None,
    sign: Sign = Sign.AUTO,
) -> Plan:
    return Plan(
        vendor=vendor,
        task_id=task_id,
        files=files or (FilePlan(),),
        steps=steps,
        copies=copies,
        shape=shape,
        sign=sign,
    )
