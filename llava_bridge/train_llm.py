"""Stage: train the demo's Llama (`llava_bridge.demo_llm.train_llm`).

`python -m llava_bridge.train_llm <config.yaml> <out_dir>`
"""

from encoder.runtime.stage import main
from llava_bridge.config import TrainLlmConfig
from llava_bridge.demo_llm.train_llm import train

if __name__ == "__main__":
    main(TrainLlmConfig, train)
