"""The protocol of OKDDip (Chen et al., AAAI 2020): 300 epochs, batch 128, SGD 0.1 with Nesterov's momentum, x0.1 at 150 and 225."""

from dataclasses import replace

from kdscale.methods import DML, ONE, Method, OKDDip, Shake, Supervised
from kdscale.recipe import SGD, Machine, Model, MultiStep, Phase, Recipe
from kdscale.recipes.cifar100._protocol import DATA

SET = replace(DATA, batch=128, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


def phase(method: Method) -> Phase:
    return Phase(method, epochs=300, optimizer=SGD(0.1, nesterov=True), schedule=MultiStep((150, 225)))


def alone(name: str, seed: int = 0) -> Recipe:
    return Recipe({"student": Model(name)}, SET, (phase(Supervised()),), seed=seed, machine=Machine(channels_last=True))


def table5(name: str, printed: dict[str, float]) -> dict[str, Recipe]:
    """One network and three trained ones of its kind: alone, online, and SHAKE with one head or with three."""
    made = {f"teacher{n if n > 1 else ''}": f"{name}-seed{n - 1}" if n > 1 else name for n in (1, 2, 3)}
    teachers = {role: Model(f"cifar100/teachers/{n}", made_by=f"cifar100/teachers:{n}") for role, n in made.items()}
    peers = {f"peer{n}": Model(name) for n in (1, 2, 3)}
    base = replace(alone(name), networks={"student": Model(name), **teachers, **peers})
    methods = {
        "baseline": Supervised(),
        "dml": DML(form="okddip", students=4),
        "one": ONE(),
        "okddip": OKDDip(),
        "shake-one": Shake(teachers=3, heads="one"),
        "shake-three": Shake(teachers=3),
    }
    where = "SHAKE, supplement table 5"
    return {
        f"table5-{name}-{key}": replace(
            base, phases=(phase(method),), published={where: printed[key]} if key in printed else {}
        )
        for key, method in methods.items()
    }
