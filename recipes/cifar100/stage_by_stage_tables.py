"""Stage-by-Stage KD (Gao, Shen, Li, Yan, Wan, Lin, Loy, Tang, 2018), tables 2 to 5: ResNet-20 from ResNet-56 and others.

Command    kdscale train cifar100/stage_by_stage_tables:table2-4-stages data.source=DATA --out runs/stages
Cost       at most 60 epochs a stage and for the head: a stage ends when its distance has stopped falling three times
Published  beside each recipe in `kdscale show recipes`; student alone 67.96, teacher 71.21
Ours       not run yet, unless results.jsonl says so

The stages run in the paper's own protocol, the rivals of table 5 in that of the CRD benchmark, at the paper's weights. Batch, weight
decay and augmentation of the stages are not printed: those of the benchmark stand in. Table 1 and 6 are ImageNet's:
imagenet/resnet. NST of table 5 is not among the methods yet.
"""

from dataclasses import replace

from kdscale.methods import AT, KD, FitNets, StageByStage, Supervised
from kdscale.recipe import Model, Recipe
from kdscale.recipes.cifar100._protocol import base, by_stages, trained

STAGES = (69.24, 70.03, 70.46, 70.77, 70.79, 70.82, 70.85, 70.93)
TOGETHER = (69.24, 69.29, 69.37, 69.46)
TEACHERS = {"vgg16": 69.98, "resnet56": 70.77, "resnet110": 70.84, "cifar_densenet121": 73.27}
start = base("resnet56", "resnet20")


def told(recipe: Recipe, table: int, top1: float) -> Recipe:
    return replace(recipe, published={f"Stage-by-Stage, table {table}": top1})


recipes: dict[str, Recipe] = {}
for number, top1 in enumerate(STAGES, 1):
    recipes[f"table2-{number}-stages"] = told(by_stages(start, StageByStage(stages=number)), 2, top1)
for number, top1 in enumerate(TOGETHER, 1):
    together = StageByStage(stages=number, variant="multi_loss")
    recipes[f"table3-{number}-stages-at-once"] = told(by_stages(start, together), 3, top1)
for name, top1 in TEACHERS.items():
    other = replace(start, networks={"student": Model("resnet20"), "teacher": trained(name)})
    recipes[f"table4-{name}"] = told(by_stages(other), 4, top1)
recipes |= {
    "table5-student": told(start.with_method(Supervised()), 5, 67.96),
    "table5-kd": told(start.with_method(KD(ce=1.0, kd=10.0)), 5, 69.32),
    "table5-fitnets": told(start.with_method(FitNets(weight=100.0)), 5, 69.96),
    "table5-at": told(start.with_method(AT(weight=50.0)), 5, 70.03),
    "table5-stage-by-stage": told(by_stages(start), 5, 70.77),
}
del start
