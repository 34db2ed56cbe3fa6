//! The `monoquant` command.

/// A plan is many small allocations, and a checkpoint may have 100,000 tensors: half of the system's time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    monoquant::gpu::quiet_driver();
    std::process::ExitCode::from(monoquant::cli::run(std::env::args_os()))
}
