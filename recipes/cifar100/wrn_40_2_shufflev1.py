"""wrn_40_2 -> ShuffleV1 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.01.

Command    kdscale train cifar100/wrn_40_2_shufflev1:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/wrn_40_2_shufflev1 --grid seed=0,1,2 data.source=DATA --out runs/wrn_40_2_shufflev1   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 75.61 (SHAKE, poster)
           alone 70.50 (SHAKE, poster)
           kd 74.83 (SHAKE, poster)
           shake 77.25 (SHAKE, poster)
Ours       `kdscale results --of cifar100/wrn_40_2_shufflev1`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("wrn_40_2", "ShuffleV1", published("wrn_40_2:ShuffleV1"))
