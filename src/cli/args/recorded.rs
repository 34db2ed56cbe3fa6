//! The options of a command that decide the bytes of its output, as they were given.

use super::{Cli, Out};
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, parser::ValueSource};
use std::ffi::OsString;

/// The command line, and what of it decides bytes: the command's name and its options, one way of many to say them.
///
/// # Errors
/// Those of clap, which it prints.
pub fn parsed(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<String>), clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let recorded = matches.subcommand().map(|(name, given)| recorded(name, given)).unwrap_or_default();
    Ok((cli, recorded))
}

/// Where input and output lie, and how they are computed and shown, decides nothing.
fn recorded(name: &str, given: &ArgMatches) -> Vec<String> {
    let beside = Out::augment_args(clap::Command::new("beside"));
    let beside: Vec<_> = beside.get_arguments().map(|a| a.get_id().clone()).collect();
    let mut command = Cli::command();
    command.build();
    let mut said = vec![name.to_owned()];
    for argument in command.find_subcommand(name).into_iter().flat_map(|c| c.get_arguments()) {
        let id = argument.get_id();
        let ours = !beside.contains(id) && id != "model";
        let (Some(long), true) = (argument.get_long(), ours) else { continue };
        // `help` and `version` have no values
        let source = given.try_contains_id(id.as_str()).ok().and_then(|_| given.value_source(id.as_str()));
        if source != Some(ValueSource::CommandLine) {
            continue;
        }
        if matches!(argument.get_action(), ArgAction::SetTrue) {
            said.push(format!("--{long}"));
            continue;
        }
        for value in given.get_raw(id.as_str()).into_iter().flatten() {
            said.push(format!("--{long}={}", value.to_string_lossy()));
        }
    }
    said
}
