//! The `monoquant` command.

fn main() -> std::process::ExitCode {
    monoquant::gpu::quiet_driver();
    std::process::ExitCode::from(monoquant::cli::run(std::env::args_os()))
}
