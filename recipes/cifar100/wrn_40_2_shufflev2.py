"""wrn_40_2 -> ShuffleV2 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.01.

Command    kdscale train cifar100/wrn_40_2_shufflev2:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/wrn_40_2_shufflev2 --grid seed=0,1,2 data.source=DATA --out runs/wrn_40_2_shufflev2   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 76.30 (SFTN, table 2)
           alone 73.21 (SFTN, table 2)
           kd 76.68 (SFTN, table 2)
Ours       `kdscale results --of cifar100/wrn_40_2_shufflev2`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("wrn_40_2", "ShuffleV2", published("wrn_40_2:ShuffleV2"))
