"""The protocol of the CRD benchmark, and every registered method in it: what the recipes of this folder are made of.

240 epochs, batch 64 with the last 16 images kept, SGD 0.05 (0.01 for MobileNet and ShuffleNet students), x0.1 after epochs 150,
180 and 210, weight decay 5e-4 on everything (Tian, Krishnan, Isola, ICLR 2020). The last evaluation is what counts.
"""

from collections.abc import Mapping
from dataclasses import replace

from kdscale.methods import (
    AT,
    BAN,
    DKD,
    DML,
    ESKD,
    KD,
    KDCL,
    ONE,
    RCO,
    TAKD,
    AlphaDivergence,
    Crd,
    FitNets,
    Method,
    MultiKD,
    OKDDip,
    ReverseKD,
    Sftn,
    Shake,
    StageByStage,
    Supervised,
)  # fmt: skip
from kdscale.recipe import SGD, Augment, Data, FromPhase, Machine, Model, MultiStep, Phase, Plateau, Recipe

LIGHT = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
MILESTONES = (150, 180, 210)
DATA = Data(
    "cifar100",
    batch=64,
    train=Augment.cifar(),
    eval_crop=1.0,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    epoch_tail="partial",
)
BETA = {  # of DKD's second term, as its authors set it (resnet110:resnet20: as they set its neighbours)
    "resnet32x4:resnet8x4": 8, "resnet32x4:ShuffleV1": 8, "resnet32x4:ShuffleV2": 8, "ResNet50:MobileNetV2": 8,
    "wrn_40_2:ShuffleV1": 8, "resnet56:resnet20": 2, "resnet110:resnet20": 2, "resnet110:resnet32": 2, "vgg13:vgg8": 6, "vgg13:MobileNetV2": 6,
    "wrn_40_2:wrn_16_2": 6, "wrn_40_2:wrn_40_1": 6,
}  # fmt: skip
ASSISTANTS = {  # a smaller network of the teacher's kind, for TAKD
    "wrn_40_2": "wrn_22_2", "resnet110": "resnet56", "resnet56": "resnet32", "resnet32x4": "resnet8x4", "vgg13": "vgg11",
    "ResNet50": "ResNet18",
}  # fmt: skip


def rates(student: str, epochs: float = 240, milestones: tuple[float, ...] = MILESTONES) -> dict[str, object]:
    """Length, optimizer and schedule of a phase that trains ``student``."""
    return {"epochs": epochs, "optimizer": SGD(0.01 if student in LIGHT else 0.05), "schedule": MultiStep(milestones)}


def trained(name: str) -> Model:
    """The network that a recipe of ``cifar100/teachers`` leaves behind; ``resnet56-seed1`` is the same from another seed."""
    return Model(f"cifar100/teachers/{name}", made_by=f"cifar100/teachers:{name}")


def base(teacher: str, student: str) -> Recipe:
    """Plain KD. The other roles are played where a method asks for them: peers are untrained networks of the teacher's kind."""
    more = {"peer2": Model(student), "peer3": Model(student), "assistant": Model(ASSISTANTS.get(teacher, student))}
    teachers = {f"teacher{n}": trained(f"{teacher}-seed{n - 1}") for n in (2, 3)}
    return Recipe(
        networks={"student": Model(student), "teacher": trained(teacher), **teachers, "peer1": Model(teacher), **more},
        data=DATA,
        phases=(Phase(KD(), **rates(student)),),
        machine=Machine(channels_last=True),
    )


def methods(teacher: str, student: str) -> dict[str, Method]:
    """The methods of one phase on this pair, by the names of the tables."""
    return {
        "alone": Supervised(),
        "kd": KD(),
        "dkd": DKD(beta=BETA.get(f"{teacher}:{student}", 8)),
        "alpha_divergence": AlphaDivergence(),
        "fitnets": FitNets(),
        "kd_fitnets": FitNets(kd=1.0),
        "at": AT(),
        "at_kd": AT(kd=1.0),
        "crd": Crd(),
        "crd_kd": Crd(kd=1.0),
        "kd_dagger": ReverseKD(),
        "kd_dagger_head": ReverseKD(update="head"),
        "kd_dagger_60": ReverseKD(update="first"),
        "dml": DML(temperature=4.0),
        "dml_dagger": DML(temperature=4.0, one_way=True),
        "dml_3": DML(students=3, temperature=4.0),
        "kdcl": KDCL(),
        "kdcl_linear": KDCL(variant="linear"),
        "kdcl_min_logit": KDCL(variant="min_logit"),
        "kdcl_general": KDCL(variant="general"),
        "one": ONE(),
        "okddip": OKDDip(),
        "takd": TAKD(),
        "ban": BAN(),
        "ban_cwtm": BAN(variant="cwtm"),
        "ban_dkpp": BAN(variant="dkpp", labels=False),
        "eskd": ESKD(),
        "kd_aver": MultiKD(),
        "kd_aekd": MultiKD(weights="aekd"),
        "shake": Shake(),
        "shake_fused": Shake(head="fused"),
        "shake_code": Shake(form="code"),
        "shake_own_bn": Shake(own_bn=True),
        "shake_alone": Shake(proxy="network"),
        "shake_aver": Shake(teachers=3),
        "shake_aekd": Shake(teachers=3, weights="aekd"),
        "shake_fitnets": Shake(plus=(FitNets(),)),
        "shake_crd": Shake(plus=(Crd(),)),
        "shake_dagger": Shake(plus=(Crd(),)),  # a reading: the sources do not say what the dagger is
        "shake_alpha": Shake(divergence="alpha"),
    }


AUGMENTATIONS = {
    "mixup": {"mixup": 1.0, "mix_groups": 1},
    "cutmix": {"cutmix": 1.0, "mix_prob": 0.5, "mix_groups": 1},
    "cutout": {"cutout": 8},
    "autoaugment": {"policy": "autoaugment-cifar10"},
}


def augmented(recipe: Recipe, technique: str) -> Recipe:
    """The recipe with one more technique: of the images, or DropBlock in the student."""
    if technique == "dropblock":
        student = recipe.networks["student"]
        assert isinstance(student, Model)
        return replace(recipe, networks={**recipe.networks, "student": replace(student, args={"drop_block": 0.1})})
    changed = replace(recipe.data.train, **AUGMENTATIONS[technique])
    return replace(recipe, data=replace(recipe.data, train=changed))


def handed_on(recipe: Recipe, method: Method, first: str, epochs: float = 240) -> Recipe:
    """``first`` is trained by ``method`` at the rates of its own kind, and then teaches the student."""
    scaled = tuple(m * epochs / 240 for m in MILESTONES)
    before = Phase(method, name="first", networks={"student": Model(first)}, **rates(first, epochs, scaled))
    after = replace(recipe.phases[0], method=KD(), name="student", networks={"teacher": FromPhase("first")})
    return replace(recipe, phases=(before, after))


def route(recipe: Recipe, teacher: str, cycles: bool = False) -> Recipe:
    """RCO: the teacher is trained first, and its four quarters teach one after another."""
    anchors = {f"teacher{n if n > 1 else ''}": FromPhase("teacher", at=60 * n if n < 4 else "end") for n in (1, 2, 3, 4)}
    first = Phase(Supervised(), name="teacher", networks={"student": Model(teacher)}, **rates(teacher))
    second = replace(recipe.phases[0], method=RCO(cycles=cycles), name="student")
    return replace(recipe, networks={**recipe.networks, **anchors}, phases=(first, second))


def friendly(recipe: Recipe, teacher: str, method: Method, epochs: int = 240, sftn: Sftn | None = None) -> Recipe:
    """SFTN: the teacher learns with copies of the student's blocks, then teaches by ``method``."""
    source = recipe.networks["student"]
    assert isinstance(source, Model)
    first = Phase(sftn or Sftn(), name="friendly", networks={"teacher": Model(teacher)}, **rates(source.name))
    taught = {"teacher": FromPhase("friendly", role="teacher")}
    scaled = tuple(m * epochs / 240 for m in MILESTONES)
    second = Phase(method, name="student", networks=taught, **rates(source.name, epochs, scaled))
    return replace(recipe, phases=(first, second))


def restarted(recipe: Recipe, times: int) -> Recipe:
    """The last phase ``times`` over: the student's weights go on, its optimizer and its rates begin anew."""
    *before, last = recipe.phases
    parts = [replace(last, name=f"{last.name}1")]
    for number in range(2, times + 1):
        networks = {**last.networks, "student": FromPhase(parts[-1].name)}
        parts.append(replace(last, name=f"{last.name}{number}", networks=networks))
    return replace(recipe, phases=(*before, *parts))


def friendly_from_trained(recipe: Recipe, teacher: str, method: Method) -> Recipe:
    """SFTN-FT: 30 epochs of the branches alone on a trained teacher, 30 of all, then the student."""
    whole = friendly(recipe, teacher, method)
    roles = {"teacher": trained(teacher)}
    branches = Phase(
        Sftn(branches_only=True), epochs=30, name="branches", networks=roles, optimizer=SGD(0.05), schedule=MultiStep((15, 25))
    )
    continued = {"teacher": FromPhase("branches", role="teacher")}
    both = Phase(
        Sftn(), epochs=30, name="friendly", networks=continued, carry=("branches",), optimizer=SGD(0.005),
        schedule=MultiStep((45, 55), offset=30),
    )  # fmt: skip
    return replace(whole, phases=(branches, both, whole.phases[1]))


UNTIL_FLAT = Plateau(
    metric="train.loss", mode="min", factor=0.1, patience=5, threshold=1e-3, relative=True, end=1e-5, stops=True
)


def by_stages(recipe: Recipe, method: StageByStage | None = None) -> Recipe:
    """Stage-by-Stage: each stage until its distance falls no more, at most 60 epochs, from rate 0.01 to 1e-5."""
    phase = Phase(method or StageByStage(), epochs=60, optimizer=SGD(0.01), schedule=UNTIL_FLAT)
    return replace(recipe, phases=(phase,))


def pair(teacher: str, student: str, published: Mapping[str, Mapping[str, float]]) -> dict[str, Recipe]:
    """Every recipe of a pair; own norms and DropBlock where the student is of a residual family.

    ``published``: name -> where -> top-1, for the names that somebody has printed.
    """
    start = base(teacher, student)
    made = {name: start.with_method(method) for name, method in methods(teacher, student).items()}
    residual = student.startswith(("resnet", "wrn"))
    if not residual:
        del made["shake_own_bn"]
    for technique in (*AUGMENTATIONS, *(["dropblock"] if residual else [])):
        for name in ("kd", "shake"):
            made[f"{name}_{technique}"] = augmented(made[name], technique)
    made["eskd"] = replace(made["eskd"], networks={**start.networks, "teacher": Model(teacher)})  # trained from scratch
    if student in LIGHT:  # whose rate is not that of the networks before it in the chain
        made["takd"] = handed_on(start, KD(), ASSISTANTS[teacher])
        made["eskd"] = handed_on(start, Supervised(), teacher, epochs=60)
    made["rco"], made["rco_eei_4"] = route(start, teacher), route(start, teacher, cycles=True)
    made["stage_by_stage"] = by_stages(start, StageByStage(stages=3 if student.startswith("resnet8x") else 4))
    for name, method in {"kd": KD(), "fitnets": FitNets(kd=1.0), "at": AT(kd=1.0), "crd": Crd()}.items():
        made[f"sftn_{name}"] = friendly(start, teacher, method)
    made["sftn_4"] = friendly(start, teacher, KD(), epochs=960)  # two readings of one row of the paper
    made["sftn_4_cycles"] = restarted(friendly(start, teacher, KD()), 4)
    made["sftn_ft"] = friendly_from_trained(start, teacher, KD())
    told = {**published, "sftn_4_cycles": published.get("sftn_4", {})}
    return {name: replace(recipe, published=told.get(name, {})) for name, recipe in made.items()}
