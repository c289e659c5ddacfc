"""resnet56 -> resnet20 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/resnet56_resnet20:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/resnet56_resnet20 --grid seed=0,1,2 data.source=DATA --out runs/resnet56_resnet20   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 72.34 (SHAKE, poster)
           alone 69.06 (SHAKE, poster)
           kd 70.66 (SHAKE, poster)
           shake 71.98 (SHAKE, poster)
Ours       `kdscale results --of cifar100/resnet56_resnet20`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("resnet56", "resnet20", published("resnet56:resnet20"))
