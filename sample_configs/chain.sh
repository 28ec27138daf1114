#!/usr/bin/env bash
# The whole chain in a folder that holds a calseg.yaml: train, adapt, predict, and three reports side by side.
#   calseg sample-data streets && cd streets && bash ../sample_configs/chain.sh
# Words given here go to pretrain, such as --steps 100. Stops at the first stage that fails, with its exit code. Run again
# it goes on where it was stopped, and passes over what is up to date.
set -euo pipefail

calseg pretrain --resume "$@"
calseg evaluate --checkpoint pretrain --domain source --html >/dev/null
calseg evaluate --checkpoint pretrain --html >/dev/null

calseg adapt --method adabn --resume
logits=$(calseg predict --checkpoint adapt-adabn --resume) # stdout holds the artifact's path and nothing else
calseg evaluate --logits "$logits" --html >/dev/null

calseg results
