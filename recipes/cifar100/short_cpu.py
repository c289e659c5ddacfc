"""ResNet-20 -> ResNet-8 on a fifth of CIFAR-100: an hour on two cores shows whether distillation helps at all. Not the benchmark.

Command    kdscale data pack CIFAR100 DATA --per-class 100      (10 000 training images; all 10 000 test images)
           kdscale sweep cifar100/short_cpu --grid seed=0,1,2 data.source=DATA --out runs/short -n 2
Cost       2 355 steps of 64 images a run
Published  nothing: 15 epochs on a fifth of the images are nobody's protocol. The teacher is a published ResNet-20 (68.83)
Ours       README, results; results.jsonl holds the rows
"""

from kdscale.methods import KD, Shake, Supervised
from kdscale.recipe import SGD, Augment, Data, Evaluation, Machine, Model, MultiStep, Phase, Recipe

kd = Recipe(
    networks={"student": Model("resnet8"), "teacher": Model("cifar100/teachers/resnet20")},
    data=Data(
        "cifar100-fifth",
        batch=64,
        train=Augment.cifar(),
        eval_crop=1.0,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        epoch_tail="partial",
    ),
    phases=(Phase(KD(), epochs=15, optimizer=SGD(0.05), schedule=MultiStep((9, 12, 14))),),
    evaluation=Evaluation(every=3),
    machine=Machine(channels_last=True),
)
alone = kd.with_method(Supervised())
shake = kd.with_method(Shake())
