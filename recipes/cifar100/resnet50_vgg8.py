"""ResNet50 -> vgg8 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/resnet50_vgg8:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/resnet50_vgg8 --grid seed=0,1,2 data.source=DATA --out runs/resnet50_vgg8   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 79.34 (SHAKE, poster); 78.70 (SFTN, table 2)
           alone 70.36 (SHAKE, poster); 71.12 (SFTN, table 2)
           kd 73.81 (SHAKE, poster); 73.82 (SFTN, table 2)
           shake 75.06 (SHAKE, poster)
Ours       `kdscale results --of cifar100/resnet50_vgg8`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("ResNet50", "vgg8", published("ResNet50:vgg8"))
