"""Every teacher of this folder, alone with its labels, in the protocol of the CRD benchmark; NAME-seed1 and -seed2 are the same again.

Command    kdscale train cifar100/teachers:wrn_40_2 data.source=DATA --out runs/wrn_40_2, then kdscale export runs/wrn_40_2 FOLDER
           `kdscale sweep` does both for a recipe whose teacher is missing
Cost       187 680 steps of 64 images each
Published  wrn_40_2 75.61, resnet56 72.34, resnet110 74.31, resnet32x4 79.42, vgg13 74.64, ResNet50 79.34 (SHAKE, poster)
Ours       resnet20 and resnet56 are here with published weights (68.83 and 72.61, measured); the others: not run yet
"""

from kdscale.methods import Supervised
from kdscale.recipe import Machine, Model, Phase, Recipe
from kdscale.recipes.cifar100._okddip import alone
from kdscale.recipes.cifar100._protocol import ASSISTANTS, DATA, rates

PUBLISHED = {"wrn_40_2": 75.61, "resnet56": 72.34, "resnet110": 74.31, "resnet32x4": 79.42, "vgg13": 74.64, "ResNet50": 79.34}
MORE = ("resnet20", "vgg16", "cifar_densenet121")


def teacher(name: str, seed: int) -> Recipe:
    where = {"SHAKE, poster": PUBLISHED[name]} if name in PUBLISHED else {}
    phases = (Phase(Supervised(), **rates(name)),)
    machine = Machine(channels_last=True)
    return Recipe({"student": Model(name)}, DATA, phases, seed=seed, machine=machine, published=where)


OKD = ("okd_vgg16", "okd_resnet110", "okd_wrn20_8")  # in the protocol of OKDDip
recipes = {
    name if seed == 0 else f"{name}-seed{seed}": alone(name, seed) if name in OKD else teacher(name, seed)
    for name in dict.fromkeys((*PUBLISHED, *MORE, *ASSISTANTS.values(), *OKD))
    for seed in (0, 1, 2)
}
