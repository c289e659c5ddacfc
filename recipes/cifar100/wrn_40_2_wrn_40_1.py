"""wrn_40_2 -> wrn_40_1 on CIFAR-100, in the protocol of the CRD benchmark: 240 epochs, batch 64, SGD 0.05.

Command    kdscale train cifar100/wrn_40_2_wrn_40_1:shake data.source=DATA --out runs/shake
           kdscale sweep cifar100/wrn_40_2_wrn_40_1 --grid seed=0,1,2 data.source=DATA --out runs/wrn_40_2_wrn_40_1   (the teacher first)
Cost       187 680 steps of 64 images a recipe; `kdscale check` tells the time on your machine
Published  teacher 75.61 (SHAKE, supplement table 4); 76.30 (SFTN, table 1)
           alone 71.98 (SHAKE, supplement table 4); 72.16 (SFTN, table 1)
           kd 73.54 (SHAKE, supplement table 4); 73.73 (SFTN, table 1)
           shake 75.62 (SHAKE, supplement table 4)
Ours       `kdscale results --of cifar100/wrn_40_2_wrn_40_1`: not run yet, unless results.jsonl says so
"""

from kdscale.recipes.cifar100._protocol import pair
from kdscale.recipes.cifar100._published import published

recipes = pair("wrn_40_2", "wrn_40_1", published("wrn_40_2:wrn_40_1"))
