"""The arms of the ablation: each a name and what it changes in the base config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One column of the study.

    Attributes:
        name: What `--arms` calls it.
        group: Which part of the table it stands in.
        changes: Dotted config keys and their values, over the base config.
        meaning: What it is, for the table.
        recipe: The recipe that runs it.
        equal_time: Train Grounding for as long as the base arm of the same seed trained its parts in all, stop where val is
            best of `STOPS` evenly spaced stops.
        needs: The arm whose finished run of the same seed this one reads its training time from.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    meaning: str = ""
    recipe: str = "cpgr"
    equal_time: bool = False

    @property
    def needs(self) -> str:
        return BASE if self.equal_time else ""


BASE = "base"
STOPS = 8
PAIR, FILTER, GEN, NET = "refinement.pairing.", "refinement.filtering.", "generation.", "grounding.network."

# one cycle on the cold start's templates; nothing else is trained, so the judges and the generator take no part
ONE = {"cycles": 1}
NO_TRAINING = {"cycles": 1, "grounding.training.steps": 1}
TEMPLATES = {GEN + "fine_tune": False}
JUDGES_OFF = {PAIR + "itg.weight": 0.0, PAIR + "itc.weight": 0.0, PAIR + "itm.weight": 0.0}


def _judge(name: str) -> dict[str, Any]:
    return {**JUDGES_OFF, PAIR + f"{name}.weight": 1.0}


def arms(layers: int = 3) -> dict[str, Arm]:
    """All arms by name, in the order of the table; `layers` fusion layers give an attention source each."""
    made = [
        Arm(BASE, "base", {}, "the config as it is"),
        # -- cycles
        Arm("cycles-0", "cycles", {**ONE, PAIR + "rule": "none", PAIR + "pseudo": "kept", FILTER + "gate": 0.0},
            "the cold start's templates straight into Grounding"),
        *(Arm(f"cycles-{n}", "cycles", {"cycles": n}, f"{n} cycle{'s' if n > 1 else ''}") for n in (1, 2, 3, 4)),
        # -- parts
        Arm("no-filtering", "parts", {FILTER + "enabled": False}, "Filtering off"),
        Arm("no-pairing", "parts", {PAIR + "own.weight": 0.0, PAIR + "attention.weight": 0.0, PAIR + "text.weight": 1.0, PAIR + "rule": "product", **JUDGES_OFF},
            "every cycle pairs by the text match alone, as the first does"),
        Arm("no-true-text", "parts", {PAIR + "true_text": False}, "pairs choose pseudo expressions and judge, but do not train"),
        Arm("pseudo-only", "parts", {PAIR + "rule": "none", PAIR + "pseudo": "kept"}, "no true expression is read"),
        Arm("no-coordinates", "parts", {GEN + "coordinates": False}, "every region of an image is alike to the generator"),
        Arm("crops", "parts", {GEN + "crops": True}, "a region is cut out instead of told by its coordinates"),
        Arm("no-prefix", "parts", {GEN + "prefix": False}, "the language model gets no words of the detector"),
        Arm("lora-qformer", "parts", {GEN + "lora.llm": False}, "LoRA in the Q-Former alone"),
        Arm("lora-llm", "parts", {GEN + "lora.qformer": False}, "LoRA in the language model alone"),
        Arm("lora-fresh", "parts", {GEN + "carry_over": False}, "a fresh LoRA every cycle"),
        Arm("lora-carried", "parts", {GEN + "carry_over": True}, "LoRA goes on from the last cycle"),
        # -- attention
        *(Arm(f"attention-{n}", "attention", {NET + "attention_layer": n}, f"[REG]'s row of fusion layer {n}") for n in range(1, layers + 1)),
        Arm("attention-pointer", "attention", {NET + "attention_layer": 0}, "the pointer's row"),
        *(Arm(f"area-{g:g}", "attention", {FILTER + "gamma": g}, f"attention over area to the power {g:g}") for g in (0.0, 0.5, 1.0)),
        Arm("itm-gate", "attention", {FILTER + "gate": 0.6}, "first cycle gated by ITM on crops at 0.6"),
        # -- levers
        Arm("paper", "levers", {PAIR + "rule": "paper", GEN + "latent": False, PAIR + "pseudo": "paired"}, "the reading nearest to the paper: text match and attention"),
        Arm("no-judges", "levers", JUDGES_OFF, "the generator does not judge"),
        *(Arm(f"judge-{name}", "levers", _judge(name), f"{name.upper()} is the only judge") for name in ("itg", "itc", "itm")),
        Arm("all-judges", "levers", {PAIR + f"{name}.weight": 1.0 for name in ("itg", "itc", "itm")}, "ITG, ITC and ITM judge"),
        Arm("no-latent", "levers", {GEN + "latent": False}, "Generation trains on the chosen regions alone"),
        Arm("no-own-map", "levers", {PAIR + "own.weight": 0.0}, "an expression's own map takes no part in pairing"),
        Arm("agree", "levers", {PAIR + "agree": True}, "pairs on which generator and attention disagree are dropped"),
        Arm("fresh-grounder", "levers", {"grounding.warm_start": False}, "Grounding starts afresh every cycle"),
        Arm("warm-grounder", "levers", {"grounding.warm_start": True}, "Grounding goes on from the last cycle"),
        Arm("floor-region", "levers", {FILTER + "floor": "region"}, "every region keeps at least one text"),
        Arm("cross-fitting", "levers", {"folds": 2}, "each half labelled by models trained on the other"),
        Arm("same-category", "levers", {FILTER + "rivals": "category"}, "a text must lead over regions of its class alone"),
        Arm("ranked-samples", "levers", {GEN + "decoding.samples": 4, GEN + "decoding.best": 2}, "two of five texts a region, by ITM"),
        Arm("confidence", "levers", {PAIR + "weighting": "posterior", "grounding.weighting": "weight"}, "a pair trains as much as it is believed"),
        Arm("longer-last", "levers", {"last_length": 2.0}, "the last cycle's Grounding trains twice as long"),
        # -- baselines
        Arm("random", "baselines", {**NO_TRAINING, "answer": "random"}, "a random region"),
        Arm("best-scored", "baselines", {**NO_TRAINING, "answer": "score"}, "the detector's best region"),
        Arm("largest", "baselines", {**NO_TRAINING, "answer": "largest"}, "the largest region"),
        Arm("cpl", "baselines", {**ONE, PAIR + "rule": "paper", PAIR + "alpha": 1.0, FILTER + "gate": 0.6},
            "CPL: templates, text match, ITM gate; as much time as base, best stop", equal_time=True),
        Arm("cpl++", "baselines", {**TEMPLATES, PAIR + "rule": "correction", "cycles": 2, FILTER + "enabled": False},
            "CPL++'s correction of CPL's labels, as its code has it"),
        Arm("self-training", "baselines", {**TEMPLATES, **JUDGES_OFF, PAIR + "rule": "product", PAIR + "text.weight": 1e-3, PAIR + "attention.weight": 0.0, PAIR + "own.weight": 1.0},
            "the grounding model's own map is the label; no generator"),
        Arm("equal-time", "baselines", ONE, "the first cycle's labels for as much training time as base, best stop", equal_time=True),
        Arm("judges", "baselines", {"answer": "judges"}, "the generator's judges answer, not the network"),
        Arm("supervised", "baselines", ONE, "the same network on true boxes, as much time as base, best stop", recipe="supervised", equal_time=True),
    ]  # fmt: skip
    return {arm.name: arm for arm in made}
