"""vgg13 -> vgg8 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/vgg13_vgg8:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/vgg13_vgg8 --grid seed=0,1,2 data.source=DATA --out runs/vgg13_vgg8   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 74.64 (SHAKE, poster); 74.64 (SHAKE, supplement table 4)
           alone 70.36 (SHAKE, poster); 70.36 (SHAKE, supplement table 4)
           kd 72.98 (SHAKE, poster); 72.98 (SHAKE, supplement table 4)
           shake 74.87 (SHAKE, poster); 74.99 (SHAKE, supplement table 4)
Ours       `kdscale results --of cifar100/vgg13_vgg8`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("vgg13", "vgg8", published("vgg13:vgg8"))
