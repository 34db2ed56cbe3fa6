//! The `monoquant` command.

fn main() -> std::process::ExitCode {
    quiet_driver();
    std::process::ExitCode::from(monoquant::cli::run(std::env::args_os()))
}

/// Mesa's device-select layer writes an error about a missing desktop to stderr; it has nothing to select here.
#[allow(unsafe_code)]
fn quiet_driver() {
    // SAFETY: nothing has started another thread yet
    unsafe { std::env::set_var("NODEVICE_SELECT", "1") }
}
