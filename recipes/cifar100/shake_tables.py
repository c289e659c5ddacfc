"""SHAKE's supplement (Li and Jin, NeurIPS 2022), tables 1, 2, 3, 5 and 6. Table 4 and the poster are the files of the pairs.

Command    kdscale train cifar100/shake_tables:table3-own-bn data.source=DATA --out runs/own-bn
Cost       187 680 steps of 64 images a recipe (table 5: 117 300 of 128)
Published  beside each recipe in `kdscale show recipes`
Ours       not run yet, unless results.jsonl says so

Table 5's teachers are three networks of the student's kind. The row 0.75 of table 3 has no number in the copy that was read.
"""

from dataclasses import replace

from kdscale.methods import Shake
from kdscale.recipe import Recipe
from kdscale.recipes.cifar100._okddip import table5
from kdscale.recipes.cifar100._protocol import augmented, base, pair

SOURCE = "SHAKE, supplement table"
TABLE1 = {
    ("resnet110", "resnet20"): (69.09, 70.66, 71.52, 70.55, 71.76, 71.05, 71.13, 71.82, 72.02),
    ("wrn_40_2", "wrn_16_2"): (73.26, 74.92, 75.33, 73.97, 75.58, 75.08, 75.17, 76.36, 76.82),
    ("vgg13", "vgg8"): (70.36, 72.98, 73.64, 71.72, 73.65, 73.22, 73.45, 74.35, 74.99),
}
ROWS1 = ("alone", "kd", "dml", "dml_dagger", "kd_dagger", "kd_dagger_head", "kd_dagger_60", "shake_alone", "shake")
SIGNALS = {
    "kl": (Shake(), 76.82, 74.99),
    "ce": (Shake(proxy_signal="ce"), 76.45, 74.52),
    "l2": (Shake(proxy_signal="l2"), 76.68, 74.86),
    "kl-and-labels": (Shake(proxy_labels=True), 75.73, 74.14),
}
SHARING = {
    "shared": (Shake(), 72.02),
    "own-bn": (Shake(own_bn=True), 72.16),
    "width-0.75": (Shake(own_bn=True, width=0.75), None),
    "width-0.5": (Shake(own_bn=True, width=0.5), 71.15),
}
TECHNIQUES = {"cutout": (74.68, 76.96), "autoaugment": (74.87, 77.12), "dropblock": (74.72, 77.03)}


def told(recipe: Recipe, table: int, top1: float | None) -> Recipe:
    return replace(recipe, published={} if top1 is None else {f"{SOURCE} {table}": top1})


recipes: dict[str, Recipe] = {}
for (teacher, student), printed in TABLE1.items():
    rows = pair(teacher, student, {})
    recipes |= {f"table1-{student}-{row}": told(rows[row], 1, top1) for row, top1 in zip(ROWS1, printed, strict=True)}
for signal, (method, wrn, vgg) in SIGNALS.items():
    recipes[f"table2-wrn_16_2-{signal}"] = told(base("wrn_40_2", "wrn_16_2").with_method(method), 2, wrn)
    recipes[f"table2-vgg8-{signal}"] = told(base("vgg13", "vgg8").with_method(method), 2, vgg)
for sharing, (method, top1) in SHARING.items():
    recipes[f"table3-{sharing}"] = told(base("resnet110", "resnet20").with_method(method), 3, top1)
recipes |= table5("okd_vgg16", {"baseline": 73.81, "shake-one": 75.95, "shake-three": 76.89})
recipes |= table5("okd_resnet110", {"baseline": 75.88, "shake-one": 78.98, "shake-three": 79.61})
recipes |= table5("okd_wrn20_8", {"baseline": 77.50, "shake-one": 81.22, "shake-three": 81.94})
for place, (teacher, student) in enumerate((("resnet110", "resnet32"), ("wrn_40_2", "wrn_16_2"))):
    plain = base(teacher, student).with_method(Shake())
    recipes[f"table6-{student}-shake"] = told(plain, 6, (74.49, 76.82)[place])
    for technique, numbers in TECHNIQUES.items():
        recipes[f"table6-{student}-{technique}"] = told(augmented(plain, technique), 6, numbers[place])
    recipes[f"table6-{student}-alpha"] = told(plain.with_method(Shake(divergence="alpha")), 6, (74.92, 77.17)[place])
