"""resnet32x4 -> resnet8x4 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/resnet32x4_resnet8x4:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/resnet32x4_resnet8x4 --grid seed=0,1,2 data.source=DATA --out runs/resnet32x4_resnet8x4   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 79.42 (SHAKE, poster); 79.42 (SHAKE, supplement table 4); 79.25 (SFTN, table 1)
           alone 72.50 (SHAKE, poster); 72.50 (SHAKE, supplement table 4); 72.38 (SFTN, table 1)
           kd 73.33 (SHAKE, poster); 73.33 (SHAKE, supplement table 4); 73.39 (SFTN, table 1)
           shake 77.35 (SHAKE, poster); 77.95 (SHAKE, supplement table 4)
Ours       `kdscale results --of cifar100/resnet32x4_resnet8x4`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("resnet32x4", "resnet8x4", published("resnet32x4:resnet8x4"))
