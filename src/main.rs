//! The `ringraft` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringraft::cli::run()
}
