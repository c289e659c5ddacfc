"""CNN pairs on ImageNet-1k: ResNet-34 -> ResNet-18, ResNet-50 -> ResNet-34 and ResNet-50 -> MobileNetV1.

Command    accelerate launch -m kdscale train imagenet/resnet:r34_r18-shake data.source=DATA machine.compile=true precision=bf16 --out runs/shake
Cost       100 epochs are 128 million images (stage_by_stage: 60 epochs for each of four stages and the head)
Published  beside each recipe in `kdscale show recipes`
Ours       not run yet

SHAKE and Stage-by-Stage print no weight decay: 1e-4 here. The teachers are torchvision's
weights; those of the papers print 73.40 and 73.55 (ResNet-34), 76.16 and 76.45 (ResNet-50).
"""

from dataclasses import replace

from kdscale.methods import AT, KD, Crd, FitNets, HeadOnly, Method, Sftn, Shake, StageByStage, Supervised
from kdscale.recipe import SGD, Augment, Data, FromPhase, Machine, Model, MultiStep, Phase, Recipe

DATA = Data("imagenet", batch=256, train=Augment(interpolation="bilinear"), eval_interpolation="bilinear")
MACHINE = Machine(channels_last=True)
R34, R50 = Model("timm/resnet34.tv_in1k"), Model("timm/resnet50.tv_in1k")


def rates(epochs: float = 100, lr: float = 0.1, milestones: tuple[float, ...] = (30, 60, 90)) -> dict[str, object]:
    return {"epochs": epochs, "optimizer": SGD(lr, decay=1e-4), "schedule": MultiStep(milestones)}


def recipe(student: str, teacher: Model, method: Method, where: str = "", top1: float = 0.0, **phase: object) -> Recipe:
    networks = {"student": Model(student), "teacher": teacher}
    phases = (Phase(method, **(rates() | phase)),)
    return Recipe(networks, DATA, phases, machine=MACHINE, published={where: top1} if where else {})


def friendly(student: str, teacher: str, method: Method, top1: float) -> Recipe:
    sftn = Phase(Sftn(lambda_kl=1.0), name="friendly", networks={"teacher": Model(teacher)}, **rates(90, milestones=(30, 60)))
    taught = Phase(method, name="student", networks={"teacher": FromPhase("friendly", role="teacher")}, **sftn_rates)
    phases = (sftn, taught)
    return Recipe({"student": Model(student)}, DATA, phases, machine=MACHINE, published={"SFTN, table 3": top1})


sftn_rates = rates(90, milestones=(30, 60))
stages = rates(60, 0.01, (18, 36, 54))
POSTER, TABLE3, TABLE6 = "SHAKE, poster", "SFTN, table 3", "Stage-by-Stage, table 6"
recipes = {
    "r34_r18-alone": recipe("resnet18", R34, Supervised(), POSTER, 69.75),
    "r34_r18-kd": recipe("resnet18", R34, KD(), POSTER, 70.66),
    "r34_r18-crd": recipe("resnet18", R34, Crd(), POSTER, 71.17),
    "r34_r18-at_kd": recipe("resnet18", R34, AT(kd=1.0), POSTER, 70.78),
    "r34_r18-shake": recipe("resnet18", R34, Shake(), POSTER, 72.07),
    "r34_r18-shake_dagger": recipe("resnet18", R34, Shake(plus=(Crd(),))),
    "r34_r18-stage_by_stage": recipe("resnet18", R34, StageByStage(stages=4), TABLE6, 71.36, **stages),
    "r34_r18-table6-kd": recipe("resnet18", R34, KD(ce=1.0, kd=15.0), TABLE6, 70.76),
    "r34_r18-table6-fitnets": recipe("resnet18", R34, FitNets(weight=10.0), TABLE6, 70.66),
    "r34_r18-table6-at": recipe("resnet18", R34, AT(weight=10.0), TABLE6, 70.73),
    "r34-table1-head": replace(
        recipe("resnet34", R34, HeadOnly(), "Stage-by-Stage, table 1", 73.53, **stages), networks={"student": R34}
    ),
    "r50_mobilenetv1-alone": recipe("mobilenetv1_100", R50, Supervised(), POSTER, 70.13),
    "r50_mobilenetv1-kd": recipe("mobilenetv1_100", R50, KD(), POSTER, 70.68),
    "r50_mobilenetv1-at": recipe("mobilenetv1_100", R50, AT(), POSTER, 70.72),
    "r50_mobilenetv1-crd": recipe("mobilenetv1_100", R50, Crd(), POSTER, 71.40),
    "r50_mobilenetv1-shake": recipe("mobilenetv1_100", R50, Shake(), POSTER, 72.66),
    "r50_r34-alone": recipe("resnet34", R50, Supervised(), TABLE3, 73.79, **sftn_rates),
    "r50_r34-kd": recipe("resnet34", R50, KD(), TABLE3, 73.55, **sftn_rates),
    "r50_r34-fitnets": recipe("resnet34", R50, FitNets(kd=1.0), TABLE3, 74.56, **sftn_rates),
    "r50_r34-crd": recipe("resnet34", R50, Crd(), TABLE3, 75.01, **sftn_rates),
    "r50_r34-sftn-kd": friendly("resnet34", "resnet50", KD(), 74.14),
    "r50_r34-sftn-fitnets": friendly("resnet34", "resnet50", FitNets(kd=1.0), 75.01),
    "r50_r34-sftn-crd": friendly("resnet34", "resnet50", Crd(), 75.39),
}
