//! Twins agree: sources (names, offsets, constants, bindings) and results (every kernel × dtype × case, byte for byte).

use monoquant::{
    backend::{Backend, CpuBackend, run_on_cpu},
    gpu::{self, GpuBackend, GpuOptions},
    kernels::{self, Binding, Kernel, PARAM_NAMES, Shape, TileBuffers, TileParams, cases},
};
use naga::{AddressSpace, ShaderStage, StorageAccess, TypeInner, back, valid};

const SHAPES: [Shape; 4] = [
    Shape { lanes: 1, subgroups: false },
    Shape { lanes: 16, subgroups: false },
    Shape { lanes: 4, subgroups: true },
    Shape { lanes: 16, subgroups: true },
];

fn module(kernel: &Kernel, shape: Shape) -> naga::Module {
    let source = kernels::source(kernel, shape);
    naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(&source)))
}

#[test]
fn uniform_and_constants_are_the_same_on_both_sides() {
    let module = module(&kernels::minmax::KERNEL, SHAPES[0]);
    let (_, params) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("TileParams")).unwrap();
    let TypeInner::Struct { members, span } = &params.inner else { panic!("TileParams is no struct") };
    let names: Vec<_> = members.iter().map(|m| m.name.clone().unwrap()).collect();
    assert_eq!(names, PARAM_NAMES);
    for (i, member) in members.iter().enumerate() {
        assert_eq!(member.offset as usize, 4 * i, "{}", PARAM_NAMES[i]);
    }
    assert_eq!(*span as usize, size_of::<TileParams>());
    // the Rust struct has these names in this order, each four bytes
    let debug = format!("{:?}", TileParams::default());
    let positions: Vec<_> = PARAM_NAMES.iter().map(|n| debug.find(&format!(" {n}: ")).expect(n)).collect();
    assert!(positions.is_sorted(), "TileParams' fields are in another order than PARAM_NAMES");

    for (name, value) in kernels::bits::NAMED {
        let (_, constant) = module
            .constants
            .iter()
            .find(|(_, c)| c.name.as_deref() == Some(name))
            .unwrap_or_else(|| panic!("common.wgsl has no constant {name}"));
        let naga::Expression::Literal(naga::Literal::U32(found)) = module.global_expressions[constant.init]
        else {
            panic!("{name} is no u32")
        };
        assert_eq!(found, value, "{name}");
    }
}

#[test]
fn bindings_are_the_same_on_both_sides() {
    for kernel in kernels::ALL {
        let module = module(kernel, SHAPES[0]);
        let mut storage = 0;
        for (_, variable) in module.global_variables.iter() {
            let Some(at) = variable.binding else { continue };
            assert_eq!(at.group, 0);
            let name = variable.name.as_deref().unwrap();
            let AddressSpace::Storage { access } = variable.space else {
                assert_eq!((at.binding, name), (0, "params"));
                continue;
            };
            storage += 1;
            let binding = Binding::ALL[at.binding as usize - 1];
            assert_eq!(binding.name(), name);
            assert_eq!(binding.read_only(), !access.contains(StorageAccess::STORE), "{name}");
        }
        assert_eq!(storage, 8, "WebGPU's default limit is 8 storage buffers a stage");
        let entry = &module.entry_points[0];
        assert_eq!((entry.name.as_str(), entry.stage), (kernel.name, ShaderStage::Compute));
        assert_eq!(module.entry_points.len(), 1);
    }
}

#[test]
fn every_shader_names_its_twin_and_has_one() {
    for kernel in kernels::ALL {
        assert!(
            kernel.wgsl.starts_with(&format!("// Twin: src/kernels/{}.rs\n", kernel.name)),
            "{}",
            kernel.name
        );
    }
    let files = std::fs::read_dir("shaders").unwrap().count();
    assert_eq!(
        files,
        kernels::ALL.len() + 4,
        "shaders/ holds the kernels, common.wgsl, trials.wgsl and the two team files"
    );
}

/// The drivers that a test machine lacks: every shader translates to SPIR-V, MSL and HLSL within WebGPU's default limits.
#[test]
fn every_shader_translates_for_every_driver() {
    let mut written = 0;
    for kernel in kernels::ALL {
        for shape in if kernel.team { &SHAPES[..] } else { &SHAPES[..1] } {
            for input_dtype in 0..3 {
                let module = module(kernel, *shape);
                let capabilities = if shape.subgroups && kernel.team {
                    valid::Capabilities::SUBGROUP
                } else {
                    valid::Capabilities::empty()
                };
                let mut validator = valid::Validator::new(valid::ValidationFlags::all(), capabilities);
                validator
                    .subgroup_stages(valid::ShaderStages::COMPUTE)
                    .subgroup_operations(valid::SubgroupOperationSet::all());
                let info = validator.validate(&module).unwrap_or_else(|e| panic!("{}: {e:?}", kernel.name));
                let constants: naga::back::PipelineConstants = [
                    ("INPUT_DTYPE".to_owned(), f64::from(input_dtype)),
                    ("LANES".to_owned(), f64::from(shape.lanes)),
                ]
                .into_iter()
                .collect();
                let (module, info) =
                    back::pipeline_constants::process_overrides(&module, &info, None, &constants).unwrap();
                let size = module.entry_points[0].workgroup_size;
                assert_eq!(size, [kernels::WORKGROUP, 1, 1]);
                assert!(size[0] <= 256, "WebGPU's default limit is 256 threads a workgroup");

                let options = back::spv::Options { lang_version: (1, 3), ..Default::default() };
                let words = back::spv::write_vec(&module, &info, &options, None).unwrap();
                assert!(words.len() > 100);

                let options = back::msl::Options {
                    lang_version: (2, 4),
                    fake_missing_bindings: true,
                    ..Default::default()
                };
                let pipeline = back::msl::PipelineOptions::default();
                let (text, _) = back::msl::write_string(&module, &info, &options, &pipeline).unwrap();
                assert!(text.contains("kernel void"), "{}", kernel.name);

                let mut text = String::new();
                let options = back::hlsl::Options {
                    shader_model: back::hlsl::ShaderModel::V6_0,
                    fake_missing_bindings: true,
                    ..Default::default()
                };
                let pipeline = back::hlsl::PipelineOptions::default();
                back::hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).unwrap();
                assert!(text.contains("numthreads(64, 1, 1)"), "{}", kernel.name);
                written += 3;
            }
        }
    }
    assert!(written >= 3 * 3 * kernels::ALL.len());
}

#[test]
fn the_harness_tests_every_kernel() {
    assert_eq!(cases::untested(&cases::cases(false)), Vec::<&str>::new());
    assert_eq!(cases::untested(&cases::cases(true)), Vec::<&str>::new());
}

#[test]
fn the_harness_sees_one_flipped_bit_in_every_buffer() {
    for wanted in [Binding::Ranges, Binding::Counts, Binding::Scales, Binding::ZeroPoints, Binding::Output] {
        let mut flipped = 0;
        let outcome = cases::compare_with(&mut CpuBackend::new(), &cases::cases(true), |binding, words| {
            if binding == wanted && flipped == 0 && !words.is_empty() {
                words[0] ^= 1;
                flipped = 1;
            }
        })
        .unwrap();
        assert_eq!((flipped, outcome.differences.len()), (1, 1), "{wanted:?}");
        assert!(outcome.differences[0].contains(wanted.name()));
    }
}

/// Sums of errors may differ by what a report does not show, and no more.
#[test]
fn the_harness_sees_errors_that_differ_by_much() {
    for (factor, seen) in [(1.001, 0), (1.01, 1), (0.99, 1), (f32::INFINITY, 1), (f32::NAN, 1)] {
        let mut changed = false;
        let outcome = cases::compare_with(&mut CpuBackend::new(), &cases::cases(true), |binding, words| {
            let large = |word: &&mut u32| (1.0..1e30).contains(&f32::from_bits(**word));
            if binding == Binding::Errors
                && !changed
                && let Some(word) = words.iter_mut().find(large)
            {
                *word = (factor * f32::from_bits(*word)).to_bits();
                changed = true;
            }
        })
        .unwrap();
        assert!(changed);
        assert_eq!(outcome.differences.len(), seen, "{:?}", outcome.differences);
    }
}

/// Every adapter of this machine: lavapipe and, under its own environment (tests/run), SwiftShader.
#[test]
fn every_adapter_makes_the_same_bytes() {
    let adapters = gpu::adapters();
    assert!(!adapters.is_empty(), "no Vulkan driver: tests/run installs lavapipe");
    let all = cases::cases(false);
    for adapter in &adapters {
        for shape in SHAPES {
            if shape.subgroups && adapter.facts.subgroups[0] < shape.lanes {
                continue;
            }
            let options = GpuOptions { shape: Some(shape), ..Default::default() };
            let mut backend = GpuBackend::open(adapter, options).unwrap();
            let outcome = cases::compare(&mut backend, &all).unwrap();
            assert_eq!(outcome.cases, all.len());
            assert!(
                outcome.differences.is_empty(),
                "{} {shape:?}: {} of {} cases differ, e.g.\n{}",
                backend.describe(),
                outcome.differences.len(),
                outcome.cases,
                outcome.differences[..outcome.differences.len().min(5)].join("\n")
            );
            assert!(backend.dispatches().len() == kernels::ALL.len(), "{:?}", backend.dispatches());
        }
    }
}

/// What a driver might get wrong, put into the shaders: the short check that runs before every job must see each.
#[test]
fn the_short_check_sees_a_wrong_driver() {
    let adapters = gpu::adapters();
    let wrong = [
        ("(quotient >> 1u) + (quotient & 1u)", "(quotient >> 1u)"), // division that truncates
        ("magnitude == middle && odd", "magnitude == middle"),      // ties away from zero
        ("atomicMax(&ranges[2u * group], best.x)", "atomicMax(&ranges[2u * group], best.y)"),
        ("0.015625", "0.0156251"),
        ("+ 0xfffu", "+ 0x1000u"), // f16 rounding
        ("<< ((i - start) * params.bits)", "<< ((i - start) * params.bits + 1u)"),
        ("(stored(pair.y, g) << params.bits)", "(stored(pair.y, g) << (params.bits - 1u))"),
        ("opaque(multiply(x, inverse)) + 8.5", "opaque(multiply(x, inverse)) + 8.4999"),
        ("product >= bitcast<u32>(f32(k) + 0.5)", "product > bitcast<u32>(f32(k) + 0.5)"),
        ("opaque(multiply(y, inverse)) + 0.5", "opaque(multiply(y, inverse)) + 0.4999"),
        ("h + u32(f16_to_f32(h) < x)", "h"),
        ("if (error < least) {", "if (error <= least) {"),
        ("(high << 4u)) - 32)", "(high << 4u)) - 31)"),
    ];
    for corrupt in wrong {
        let options = GpuOptions { corrupt: Some(corrupt), ..Default::default() };
        let mut backend = GpuBackend::open(&adapters[0], options).unwrap();
        let outcome = backend.check(true).unwrap();
        assert!(!outcome.differences.is_empty(), "{corrupt:?} was not noticed");
    }
    let mut backend = GpuBackend::open(&adapters[0], GpuOptions::default()).unwrap();
    assert_eq!(backend.check(true).unwrap().differences, Vec::<String>::new());
    assert!(backend.dispatches().is_empty(), "a check does not count as work");
}

/// One kernel that does several steps makes what the steps make.
#[test]
fn fused_steps_are_the_same_as_single_ones() {
    let cases = cases::cases(false);
    let mut compared = 0;
    let run = |case: &cases::Case| {
        let pass = &case.tile.passes[0];
        let mut buffers = TileBuffers::default();
        buffers.resize(&pass.lengths());
        bytemuck::cast_slice_mut(&mut buffers.input)[..case.input.len()].copy_from_slice(&case.input);
        run_on_cpu(pass, &mut buffers);
        buffers
    };
    let endings = [", fused", ", scales first"];
    for case in &cases {
        let Some(name) = endings.iter().find_map(|ending| case.name.strip_suffix(ending)) else { continue };
        let steps = cases.iter().find(|c| c.name == name && c.input == case.input).expect(name);
        let (fused, single) = (run(case), run(steps));
        for binding in [Binding::Ranges, Binding::Scales, Binding::ZeroPoints, Binding::Output] {
            assert_eq!(fused.words(binding), single.words(binding), "{} {}", case.name, binding.name());
        }
        for (a, b) in fused.errors.iter().flatten().zip(single.errors.iter().flatten()) {
            let same = (a - b).abs() <= 1e-3 * b.abs() + 1e-5 || !(a.is_finite() || b.is_finite());
            assert!(same, "{}: errors {a} and {b}", case.name);
        }
        compared += 1;
    }
    assert!(compared > 300, "{compared}");
}
