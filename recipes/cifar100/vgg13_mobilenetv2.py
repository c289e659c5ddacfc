"""vgg13 -> MobileNetV2 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.01.

Command    kdscale train cifar100/vgg13_mobilenetv2:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/vgg13_mobilenetv2 --grid seed=0,1,2 data.source=DATA --out runs/vgg13_mobilenetv2   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 74.64 (SHAKE, poster)
           alone 64.60 (SHAKE, poster)
           kd 67.37 (SHAKE, poster)
           shake 70.03 (SHAKE, poster)
Ours       `kdscale results --of cifar100/vgg13_mobilenetv2`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("vgg13", "MobileNetV2", published("vgg13:MobileNetV2"))
