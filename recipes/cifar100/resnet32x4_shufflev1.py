"""resnet32x4 -> ShuffleV1 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.01.

Command    kdscale train cifar100/resnet32x4_shufflev1:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/resnet32x4_shufflev1 --grid seed=0,1,2 data.source=DATA --out runs/resnet32x4_shufflev1   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 79.42 (SHAKE, supplement table 4); 79.25 (SFTN, table 2)
           alone 70.50 (SHAKE, supplement table 4); 71.95 (SFTN, table 2)
           kd 74.07 (SHAKE, supplement table 4); 74.26 (SFTN, table 2)
           shake 77.46 (SHAKE, supplement table 4)
Ours       `kdscale results --of cifar100/resnet32x4_shufflev1`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("resnet32x4", "ShuffleV1", published("resnet32x4:ShuffleV1"))
