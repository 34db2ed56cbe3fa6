//! `--override`.

use crate::{Case, inputs::*, refused};

pub fn cases() -> Vec<Case> {
    vec![
        refused(
            "override: empty",
            sound(),
            "quantize -m x.safetensors --override ''",
            "invalid value '' for '--override <REGEX=CHANGES>': --override '': '' is not KEY=VALUE; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: no changes",
            sound(),
            "quantize -m x.safetensors --override layer",
            "invalid value 'layer' for '--override <REGEX=CHANGES>': --override 'layer': 'layer' is not KEY=VALUE; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: no regex",
            sound(),
            "quantize -m x.safetensors --override bits=8",
            "invalid value 'bits=8' for '--override <REGEX=CHANGES>': --override 'bits=8': the regex is missing (.* matches every name); expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: an empty regex",
            sound(),
            "quantize -m x.safetensors --override =bits=8",
            "invalid value '=bits=8' for '--override <REGEX=CHANGES>': --override '=bits=8': the regex is missing (.* matches every name); expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: no regular expression",
            sound(),
            "quantize -m x.safetensors --override (=bits=8",
            "invalid value '(=bits=8' for '--override <REGEX=CHANGES>': --override '(=bits=8': '(' is not a regular expression: regex parse error:\n    (\n    ^\nerror: unclosed group; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: an unknown key",
            sound(),
            "quantize -m x.safetensors --override layer=colour=red",
            "invalid value 'layer=colour=red' for '--override <REGEX=CHANGES>': --override 'layer=colour=red': 'colour' is not a key; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: a key twice",
            sound(),
            "quantize -m x.safetensors --override layer=bits=8,bits=4",
            "invalid value 'layer=bits=8,bits=4' for '--override <REGEX=CHANGES>': --override 'layer=bits=8,bits=4': bits is given twice; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: 5 bits",
            sound(),
            "quantize -m x.safetensors --override layer=bits=5",
            "invalid value 'layer=bits=5' for '--override <REGEX=CHANGES>': --override 'layer=bits=5': bits=5: bits is 4, 8 or 16 (16 leaves the layer unquantized); expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: groups of 0",
            sound(),
            "quantize -m x.safetensors --override layer=group-size=0",
            "invalid value 'layer=group-size=0' for '--override <REGEX=CHANGES>': --override 'layer=group-size=0': group-size=0: group-size is a number of weights, at least 1, or channel; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: groups of 2^64",
            sound(),
            "quantize -m x.safetensors --override layer=group-size=18446744073709551616",
            "invalid value 'layer=group-size=18446744073709551616' for '--override <REGEX=CHANGES>': --override 'layer=group-size=18446744073709551616': group-size=18446744073709551616: group-size is a number of weights, at least 1, or channel; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: groups of 2^63",
            sound(),
            "quantize -m x.safetensors --override layer=bits=4,group-size=9223372036854775808 -o out.safetensors -f",
            "layer.weight: groups of 9223372036854775808 do not divide its rows of 64 weights; 64, 32, 16, 8 do (--group-size, or --on-mismatch shrink|channel|keep)",
        ),
        refused(
            "override: contradicts itself",
            sound(),
            "quantize -m x.safetensors --override layer=group-size=32,strategy=channel",
            "invalid value 'layer=group-size=32,strategy=channel' for '--override <REGEX=CHANGES>': --override 'layer=group-size=32,strategy=channel': strategy=channel contradicts an earlier part; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: an unknown observer",
            sound(),
            "quantize -m x.safetensors --override layer=observer=best",
            "invalid value 'layer=observer=best' for '--override <REGEX=CHANGES>': --override 'layer=observer=best': observer=best: observer is minmax, percentile, histogram or mse; expected REGEX=KEY=VALUE[,KEY=VALUE…] with bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse",
        ),
        refused(
            "override: groups that do not fit",
            sound(),
            "quantize -m x.safetensors --override layer=group-size=48 -o out.safetensors -f",
            "layer.weight: groups of 48 do not divide its rows of 64 weights; 64, 32, 16, 8 do (--group-size, or --on-mismatch shrink|channel|keep)",
        ),
        refused(
            "override: a whole tensor at 4 bits",
            sound(),
            "quantize -m x.safetensors --override layer=bits=4,strategy=tensor -o out.safetensors -f",
            "layer.weight: int4 weights with float inputs take one scale a channel or group; a whole tensor shares one in w8a8 only",
        ),
        refused(
            "override: everything to 16 bits",
            sound(),
            "quantize -m x.safetensors --override .=bits=16 -o out.safetensors -f",
            "no layer is left to quantize (layer.weight: override says 16 bits); --include, --layer-types and --min-params choose others",
        ),
        refused(
            "override: of a cast",
            sound(),
            "quantize -m x.safetensors -b 16 --override layer=bits=8",
            "--override has no meaning for fp16, which casts every float tensor",
        ),
    ]
}
