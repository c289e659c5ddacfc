"""WRN-40-2 -> WRN-16-2 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05, x0.1 at 150, 180, 210.

Command    kdscale train cifar100/wrn_40_2_wrn_16_2:shake data.source=DATA networks.teacher=FOLDER --out runs/shake
           (`teacher` trains the teacher; networks.teacher=FOLDER is its export)
Cost       187 680 steps of 64 images a recipe
Published  teacher 75.61, student alone 73.26, kd 74.92 (Tian, Krishnan, Isola, ICLR 2020, table 1);
           shake 76.62 (Li and Jin, NeurIPS 2022, poster) and 76.82 (its supplement, table 1)
Ours       teacher, alone, kd, shake: not run yet
"""

from kdscale.methods import KD, Shake, Supervised
from kdscale.recipe import SGD, Augment, Data, Evaluation, Model, MultiStep, Phase, Recipe

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

base = Recipe(
    networks={"student": Model("wrn_16_2"), "teacher": Model("runs/wrn_40_2/export")},
    data=Data(
        "cifar100",
        batch=64,
        train=Augment.cifar(),
        eval_crop=1.0,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        epoch_tail="partial",
    ),
    phases=(Phase(KD(temperature=4.0), epochs=240, optimizer=SGD(0.05, decay=5e-4), schedule=MultiStep((150, 180, 210))),),
    evaluation=Evaluation(every=1),
    name="wrn_40_2_wrn_16_2",
)
kd = base
shake = base.with_method(Shake(temperature=4.0))
alone = base.with_method(Supervised())
teacher = Recipe(
    networks={"student": Model("wrn_40_2")},
    data=base.data,
    phases=(Phase(Supervised(), epochs=240, optimizer=SGD(0.05, decay=5e-4), schedule=MultiStep((150, 180, 210))),),
    evaluation=base.evaluation,
    name="wrn_40_2",
)
