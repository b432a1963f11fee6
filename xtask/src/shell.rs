//! Running other programs from the root of the repository, and the toolchain parts that they need.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The unstable toolchain, as rustup names it: for what stable cannot do (Miri, building `core`).
pub(crate) const NIGHTLY: &str = "nightly";

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository")
}

pub(crate) fn target_dir() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A program to be run in the root of the repository.
pub(crate) fn command<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Cargo of the pinned toolchain.
pub(crate) fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    command("cargo", args)
}

/// Cargo of the unstable toolchain, with a target directory of its own: sharing one would rebuild both ways.
pub(crate) fn cargo_nightly<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = command("cargo", [format!("+{NIGHTLY}").as_str()]);
    command.args(args).env("CARGO_TARGET_DIR", target_dir().join("xtask"));
    command
}

/// Shows the command, runs it, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", shown(command));
    Ok(())
}

/// What a command prints on its standard output; fails unless it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", shown(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed: {}\n{}", shown(command), output.status, stderr.trim_end());
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether the program with these arguments runs and succeeds, in silence.
pub(crate) fn works<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> bool {
    let status = command(program, args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Adds the standard library of a target to the pinned toolchain.
pub(crate) fn ensure_target(target: &str) -> Result<()> {
    let installed = output(&mut command("rustup", ["target", "list", "--installed"]))?;
    if installed.lines().any(|line| line == target) {
        return Ok(());
    }
    run(&mut command("rustup", ["target", "add", target]))
}

/// Installs the unstable toolchain and these components of it. What is there already is not looked for on
/// the network, so that a machine that has everything needs none.
pub(crate) fn ensure_nightly(components: &[&str]) -> Result<()> {
    let list = ["component", "list", "--installed", "--toolchain", NIGHTLY];
    if output(&mut command("rustup", list)).is_err() {
        run(&mut command("rustup", ["toolchain", "install", NIGHTLY, "--profile", "minimal"]))?;
    }
    let installed = output(&mut command("rustup", list))?;
    for component in components {
        // Components that depend on the host are listed with its name: `miri-x86_64-unknown-linux-gnu`.
        if !installed.lines().any(|line| line.starts_with(component)) {
            run(&mut command("rustup", ["component", "add", component, "--toolchain", NIGHTLY]))?;
        }
    }
    Ok(())
}

/// Installs Debian packages, where that is possible without asking anybody.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("`apt-get install {}`", packages.join(" "));
    if !works("apt-get", ["--version"]) {
        bail!("not a Debian system; install what {by_hand} would");
    }
    if output(&mut command("id", ["-u"]))?.trim() != "0" {
        bail!("needs root: run {by_hand}");
    }
    run(&mut command("apt-get", ["update"]))?;
    // A library of a newer release may be there already; the packages asked for then need the older one.
    let mut install = command("apt-get", ["install", "-y", "--no-install-recommends", "--allow-downgrades"]);
    run(install.args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The command as a shell would take it, with the variables that it sets.
fn shown(command: &Command) -> String {
    let quoted = |text: &std::ffi::OsStr| {
        let text = text.to_string_lossy();
        if text.contains(' ') { format!("'{text}'") } else { text.into_owned() }
    };
    let variables =
        command.get_envs().filter_map(|(name, value)| Some(format!("{}={}", quoted(name), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}
