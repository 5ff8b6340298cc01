"""Write the synthetic fault-report data set: train.jsonl and heldout.jsonl.

A report is put together from a machine, a symptom (which decides the fault class), an
impact (which decides the effect), sometimes a detail that does not matter, and a sentence
frame; then it is roughened with odd spellings of the machine id and typos.

Some frames, symptoms, part-and-sign pairs and impacts are reserved: training rows never use
them, and every held-out row uses at least one. The output depends on SEED alone.
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

SEED = 20
TRAIN_ROWS = 540
HELDOUT_ROWS = 72
SYSTEM = "Diagnose the fault report."
RESERVED_PAIR = 5  # one part-and-sign pair in this many is kept for the held-out split
# The chance that a held-out row takes its symptom, impact or frame from the reserved ones.
RESERVED_SHARE = 0.4


def split(text: str) -> list[str]:
    """Split a table cell at its bars."""
    return [" ".join(item.split()) for item in text.split("|")]


@dataclass(frozen=True)
class Fault:
    """One fault class; a symptom that ends in "!" only fits a machine that has stopped."""

    name: str
    machines: str
    parts: str
    signs: str
    phrases: str
    reserved: str

    def symptoms(self, *, held_out: bool, stopped: bool) -> list[str]:
        """Return the symptoms that only this split may use and that fit the machine's state."""
        pairs = [f"{part} {sign}" for part in split(self.parts) for sign in split(self.signs)]
        kept = [pair for n, pair in enumerate(pairs) if (n % RESERVED_PAIR == 2) == held_out]
        usable = kept + split(self.reserved if held_out else self.phrases) * 2
        return [symptom for symptom in usable if stopped or not symptom.endswith("!")]


FAULTS = (
    Fault(
        "bearing",
        "CNV PMP LTH MIL MIX",
        "main bearing | spindle brg | idler bearing | motor bearing | drive end brg",
        "grinding | rumbling | squealing at speed | knocking | noisy | has play in it",
        """grinding noise from the shaft | shaft wobbles and rumbles | bearing seized!
        | growling noise from the roller | loud whine when the shaft spins""",
        """rumble in the shaft, feels like gravel | roller grinding and shaking
        | brg noisy and grinding | shaft knocks and growls""",
    ),
    Fault(
        "overheating",
        "PMP OVN MIX INJ",
        "motor | gearbox | drive housing | heater zone 2 | spindle head",
        "running very hot | too hot to touch | hot, 90 deg | gives temp alarm | smells hot",
        """temp alarm keeps coming up | hot smell off the motor | thermal cutout went!
        | temperature climbing | cooling fan not turning, getting hot""",
        """gauge says 105 deg and rising | thermal warning, motor hot | housing burning hot
        | temp far too hot""",
    ),
    Fault(
        "oil_leak",
        "PRS INJ BAL LFT",
        "hyd hose | cylinder seal | hyd pump | ram seal | valve block",
        "leaking oil | dripping oil | weeping oil | spraying oil | losing oil pressure | burst!",
        """puddle of oil underneath | oil level low again | ram sinks by itself
        | hydraulic oil runs low | oil on the floor by the tank""",
        """oil slick under the frame | hyd oil all over the guard | ram creeps down, tank low
        | topped up the oil twice""",
    ),
    Fault(
        "air_leak",
        "RBT PKG WLD LBL",
        "air line | air hose | gripper cylinder | air fitting | vacuum cup",
        "hissing | leaking air | losing air | low on air | blown off!",
        """can hear air escaping | air pressure drops on every cycle | low air, clamp slow
        | vacuum too weak | hiss from the regulator, low air""",
        """hiss behind the guard | air blowing out somewhere | clamp weak, can hear a hiss
        | vacuum lost, air escaping""",
    ),
    Fault(
        "jam",
        "CNV PKG LBL FIL SAW",
        "carton | part | tray | scrap piece | box",
        "stuck in the infeed | keeps catching on the guide | jammed at the outfeed | wedged!",
        """infeed blocked! | outfeed jams all the time | crushed box in the chute
        | product piling up at the gate | chute clogged with offcuts""",
        """box sideways in the infeed | parts piling up at the exit | outfeed blocked again
        | tray stuck between the rails""",
    ),
    Fault(
        "sensor",
        "CNV RBT PKG FIL PRS",
        "prox switch | photo eye | level sensor | limit switch | encoder",
        "not picking up | reads wrong | flickering | stuck on | drops out | false triggers",
        """does not see the part | counts parts that are not there | position not detected
        | home signal missing! | eye dirty, reads nothing""",
        """part is there but not detected | eye gives false counts | reads the wrong position
        | switch does not see the tray""",
    ),
    Fault(
        "electrical",
        "OVN WLD PMP MIX SAW",
        "breaker | fuse | contactor | power supply | motor fuse",
        "trips | sparking | looks burnt | buzzing | lost power!",
        """no power at the panel! | earth fault on the display | loose wire in the cabinet
        | lost a phase | voltage drops at startup""",
        """panel dark, no power! | burnt fuse in the cabinet | sparks from the panel
        | wire loose, power cuts out""",
    ),
    Fault(
        "belt",
        "CNV PKG LTH SAW MIX",
        "drive belt | timing belt | v-belt | main belt | transfer belt",
        "slipping | frayed | running to one side | slack | snapped! | skipping teeth | cracked",
        """rubber dust under the pulley | belt tracking off | belt came off the pulley!
        | belt rubbing on the frame | belt squeals, needs tension""",
        """rubber bits below the pulley | belt off centre | belt tension gone
        | belt thin and slips""",
    ),
    Fault(
        "tool_wear",
        "MIL LTH DRL SAW GRD",
        "cutter | drill bit | insert | blade | end mill",
        "worn | blunt | chipped | leaving burrs | past its life count",
        """rough finish, tool dull | burrs on the edge | edge of the tool rounded off
        | bore drifting, insert worn | chatter marks, tip gone""",
        """finish rough, edge not sharp | cutter dull, ragged cut | tip worn down
        | burrs all over, blade dull""",
    ),
)

EFFECTS = {
    "stopped": (
        """line stopped | machine is down | can't run | had to hit e-stop | not safe to run
        | production stopped | won't start | locked out | had to shut it off""",
        "line is down | stopped, not safe | machine won't run | had to stop it",
    ),
    "slow": (
        """running at half speed | slowing us down | cycle time up | runs but slow | behind target
        | speed turned down | takes twice as long | slow cycle""",
        "running slow | half speed only | slower than normal | cycle takes longer",
    ),
    "scrap": (
        """scrap is up | some bad parts | lots of rework | rejects going up | parts out of spec
        | bad parts again | had to scrap ten parts | quality is bad""",
        "more scrap than usual | bad parts going up | lots of rejects | parts need rework",
    ),
    "none": (
        """still running fine | no effect on output yet | can wait for the weekend | no rush
        | not urgent | production ok for now | full speed still | output is fine""",
        "no hurry | still running ok | output still fine | can wait until monday",
    ),
}

DETAILS = split(
    """since 0640 | 2nd shift | day shift here | line 3 | order 4471 | after lunch
    | after the changeover | cleaned it already | blue caps job | same as last week | bay 2
    | Ana checked it too | since this morning | night crew saw it first | told the lead"""
)

TRAIN_FRAMES = split(
    """{m}: {s}, {i} | {m} {s}, {i} | {s} on {m}, {i} | {m} again. {s}. {i}
    | {i}, {m} {s} | {m} - {i}. {s} | {m} {d}, {s}, {i} | {s} on {m}, {d}. {i}
    | {d}: {m} {s}. {i} | {m} {s}. {d}. {i} | {i}. {s}, it's {m}, {d} | {m}, {i}, {s}, {d}
    | hi, {s} at {m}. {i}. thx | {s}. {i}. {m}"""
)
HELD_FRAMES = split(
    """pls look at {m}, {s}, {i} | {s} - {i} - {m} | {d}, {s} at {m}, {i}
    | {i} because {s} ({m}) | got a problem on {m}: {s}. {i}, {d} | {i}, {d}. {m} has {s}"""
)


def pick(rng: random.Random, ours: list[str], reserved: list[str] | None) -> str:
    """Pick a wording; a held-out row takes a reserved one in RESERVED_SHARE of the cases."""
    use = reserved if reserved and rng.random() < RESERVED_SHARE else ours
    return rng.choice(use)


def spell_machine(rng: random.Random, machine: str) -> str:
    """Write a machine id the way people type it."""
    roll = rng.random()
    if roll < 0.8:
        return machine
    return machine.lower() if roll < 0.91 else machine.replace("-", " ")


def add_typo(rng: random.Random, text: str) -> str:
    """Drop or swap one inner letter of one longer word."""
    words = list(re.finditer(r"\b[a-z]{6,}\b", text))
    if not words:
        return text
    at = rng.choice(words).start() + rng.randint(1, 3)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def make_row(
    rng: random.Random, fault: Fault, effect: str, held_out: bool
) -> tuple[str, str, bool]:
    """Return a report, its diagnosis, and whether any reserved wording is in the report."""
    fresh = fault.symptoms(held_out=True, stopped=effect == "stopped")
    known = fault.symptoms(held_out=False, stopped=effect == "stopped")
    symptom = pick(rng, known, fresh if held_out else None)
    usual, rare = (split(cell) for cell in EFFECTS[effect])
    impact = pick(rng, usual, rare if held_out else None)
    frame = pick(rng, TRAIN_FRAMES, HELD_FRAMES if held_out else None)
    machine = f"{rng.choice(fault.machines.split())}-{rng.randint(1, 24):02d}"
    report = frame.format(m="{m}", s=symptom.rstrip("!"), i=impact, d=rng.choice(DETAILS))
    if rng.random() < 0.15:
        report = add_typo(rng, report)
    if rng.random() < 0.25:
        report = report[0].upper() + report[1:]
    report = report.replace("{m}", spell_machine(rng, machine))
    answer = {"machine": machine, "fault": fault.name, "effect": effect}
    is_new = symptom in fresh or impact in rare or frame in HELD_FRAMES
    return report, json.dumps(answer, separators=(",", ":")), is_new


def make_split(rng: random.Random, count: int, held_out: bool, seen: set[str]) -> list[str]:
    """Return the lines of one split, each with a report not seen before."""
    lines: list[str] = []
    while len(lines) < count:
        fault = FAULTS[len(lines) % len(FAULTS)]
        effect = list(EFFECTS)[len(lines) // len(FAULTS) % len(EFFECTS)]
        report, answer, is_new = make_row(rng, fault, effect, held_out)
        if report in seen or is_new != held_out:
            continue
        seen.add(report)
        turns = (("system", SYSTEM), ("user", report), ("assistant", answer))
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"messages": messages}))
    rng.shuffle(lines)
    return lines


def main() -> None:
    """Rewrite both files beside this script."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    here = Path(__file__).resolve().parent
    for name, count, held_out in (("train", TRAIN_ROWS, False), ("heldout", HELDOUT_ROWS, True)):
        lines = make_split(rng, count, held_out, seen)
        text = "".join(f"{line}\n" for line in lines)
        (here / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
