"""Student-Friendly Teachers (Park, Cha, Jeong, Kim, Han, NeurIPS 2021), tables 5, 6, 7 and 9. Tables 1, 2 and 4 are the files of the pairs.

Command    kdscale train cifar100/sftn_tables:table6-resnet32x4-ShuffleV1-weight-3 data.source=DATA --out runs/sftn
Cost       187 680 steps of 64 images for the teacher with its branches and as many for the student
Published  of the student, beside each recipe in `kdscale show recipes`
Ours       not run yet, unless results.jsonl says so

Table 3 is ImageNet's: imagenet/resnet. Table 8 is of times. The sweep of table 5 was made with weight 1: its first row is table 6's.
"""

from dataclasses import replace

from kdscale.methods import AT, KD, Crd, FitNets, Sftn
from kdscale.recipe import Model, Recipe
from kdscale.recipes.cifar100._protocol import base, friendly, friendly_from_trained, rates

PAIRS = (("resnet32x4", "ShuffleV1"), ("resnet32x4", "ShuffleV2"), ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"))
TEMPERATURES = {
    1: (76.05, 77.18, 76.30, 74.75), 5: (75.36, 75.59, 76.31, 73.64), 10: (74.47, 75.93, 75.85, 73.62),
    15: (74.78, 75.65, 75.79, 73.49), 20: (74.62, 75.88, 75.82, 74.03),
}  # fmt: skip
WEIGHTS = {
    1: (76.05, 77.18, 76.30, 74.75), 3: (77.36, 78.56, 76.20, 74.71), 6: (77.33, 77.70, 76.02, 74.67),
    10: (75.57, 76.62, 74.19, 73.08),
}  # fmt: skip
BRANCHES = {  # of table 7: the network of the branches -> KD, CRD
    ("wrn_40_2", "wrn_16_2"): {
        "resnet8x2": (74.67, 76.14), "wrn_16_1": (74.73, 76.07), "wrn_16_2": (76.25, 77.23), "ShuffleV2": (75.68, 77.45),
        "resnet32x4": (75.56, 77.06), "wrn_40_2": (75.63, 76.70),
    },
    ("resnet32x4", "resnet8x4"): {
        "wrn_16_1": (74.71, 76.38), "resnet8x2": (75.19, 76.72), "resnet8x4": (76.09, 76.95), "ShuffleV2": (75.82, 76.64),
        "resnet32x4": (75.19, 76.54), "wrn_40_2": (75.03, 76.46),
    },
}  # fmt: skip
TUNED = {"kd": (KD(), 78.07, 78.12), "crd": (Crd(), 78.43, 78.88)}


def told(recipe: Recipe, table: int, top1: float | None) -> Recipe:
    return replace(recipe, published={} if top1 is None else {f"SFTN, table {table}": top1})


recipes: dict[str, Recipe] = {}
for column, (teacher, student) in enumerate(PAIRS):
    start = base(teacher, student)
    for temperature, printed in TEMPERATURES.items():
        sftn = Sftn(temperature=temperature, lambda_kl=1.0)
        name = f"table5-{teacher}-{student}-temperature-{temperature}"
        recipes[name] = told(friendly(start, teacher, KD(), sftn=sftn), 5, printed[column])
    for weight, printed in WEIGHTS.items():
        made = friendly(start, teacher, KD(), sftn=Sftn(lambda_kl=weight))
        recipes[f"table6-{teacher}-{student}-weight-{weight}"] = told(made, 6, printed[column])
for (teacher, student), rows in BRANCHES.items():
    for branch, numbers in rows.items():
        for method, top1 in zip((KD(), Crd()), numbers, strict=True):
            made = friendly(base(teacher, student), teacher, method)
            first = replace(made.phases[0], networks={**made.phases[0].networks, "student": Model(branch)}, **rates(branch))
            name = f"table7-{teacher}-{student}-branches-{branch}-{method.kind}"
            recipes[name] = told(replace(made, phases=(first, made.phases[1])), 7, top1)
for name, (method, whole, tuned) in TUNED.items():
    start = base("resnet32x4", "ShuffleV2")
    recipes[f"table9-{name}-sftn"] = told(friendly(start, "resnet32x4", method), 9, whole)
    recipes[f"table9-{name}-sftn-ft"] = told(friendly_from_trained(start, "resnet32x4", method), 9, tuned)
for name, method in {"fitnets": FitNets(kd=1.0), "at": AT(kd=1.0)}.items():
    recipes[f"table9-{name}-sftn-ft"] = friendly_from_trained(base("resnet32x4", "ShuffleV2"), "resnet32x4", method)
del start, made
