//! What PTX declares, and what the assembler says of it, as text to be compared.

use anyhow::{Context, Result, ensure};

/// What one entry takes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Resources {
    entry: String,
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// What `ptxas -v` says of each entry, in the order of their names.
pub(crate) fn resources(log: &str) -> Result<Vec<Resources>> {
    let mut entries: Vec<Resources> = Vec::new();
    // Properties of functions that are no entries come between.
    let mut of_entry = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            entries.push(Resources { entry, ..Resources::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            of_entry = entries.last().is_some_and(|last| last.entry == name.trim());
        } else if let Some(last) = entries.last_mut().filter(|_| of_entry) {
            if line.contains("bytes stack frame") {
                last.stack_bytes = before(line, " bytes stack frame").unwrap_or(0);
                last.spill_bytes = before(line, " bytes spill stores").unwrap_or(0)
                    + before(line, " bytes spill loads").unwrap_or(0);
            } else if line.contains(" registers") {
                last.registers = before(line, " registers").context("no number of registers")?;
                last.shared_bytes = before(line, " bytes smem").unwrap_or(0);
            }
        }
    }
    ensure!(!entries.is_empty(), "the assembler names no entry:\n{log}");
    ensure!(entries.iter().all(|entry| entry.registers > 0), "an entry without registers:\n{log}");
    entries.sort_by(|a, b| a.entry.cmp(&b.entry));
    Ok(entries)
}

/// The number before these words.
fn before(line: &str, words: &str) -> Option<u32> {
    let (text, _) = line.split_once(words)?;
    text.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A table with a line for each entry of each architecture.
pub(crate) fn table(architectures: &[(&str, Vec<Resources>)]) -> String {
    let names = architectures.iter().flat_map(|(_, entries)| entries.iter().map(|entry| entry.entry.len()));
    let width = names.max().unwrap_or(0);
    let mut lines = vec![format!(
        "{:<5}  {:<width$}  registers  static shared bytes  stack bytes  spill bytes\n",
        "arch", "entry"
    )];
    for (architecture, entries) in architectures {
        lines.extend(entries.iter().map(|resources| {
            let Resources { entry, registers, shared_bytes, stack_bytes, spill_bytes } = resources;
            format!(
                "{architecture:<5}  {entry:<width$}  {registers:>9}  {shared_bytes:>19}  {stack_bytes:>11}  {spill_bytes:>11}\n"
            )
        }));
    }
    lines.concat()
}

/// What can be called: entries and device functions with the types of their parameters, in the order of their names.
pub(crate) fn signatures(ptx: &str) -> Vec<String> {
    let declarations = ptx.split(".visible ").skip(1).filter_map(|rest| rest.split(['{', ';']).next());
    let callable = declarations.filter(|text| text.starts_with(".entry") || text.starts_with(".func"));
    let mut signatures: Vec<String> = callable.map(signature).collect();
    signatures.sort();
    signatures
}

/// `.func (.b32) name(.b32, .align 8 .b8[40])`: the names of parameters say nothing, and are left out.
fn signature(declaration: &str) -> String {
    let code = declaration.lines().map(|line| line.split("//").next().unwrap_or_default());
    let mut text = String::new();
    for word in code.flat_map(str::split_whitespace) {
        let word = word.strip_suffix(".param").unwrap_or(word);
        let is_name = (word.contains("_param_") || word.starts_with("func_retval")) && !word.ends_with('(');
        let word = if is_name { word.trim_start_matches(|c| !matches!(c, '[' | ',' | ')')) } else { word };
        if !is_name && !word.is_empty() && !text.is_empty() && !text.ends_with('(') && word != ")" {
            text.push(' ');
        }
        text += word;
    }
    text
}

/// All signatures, with the architectures that have them.
pub(crate) fn list(architectures: &[(&str, Vec<String>)]) -> String {
    let mut all: Vec<&String> = architectures.iter().flat_map(|(_, signatures)| signatures).collect();
    all.sort();
    all.dedup();
    let line = |signature: &String| {
        let having = architectures.iter().filter(|(_, signatures)| signatures.contains(signature));
        let names: Vec<&str> = having.map(|(architecture, _)| *architecture).collect();
        format!("{}: {signature}\n", names.join(" "))
    };
    all.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assembler_is_understood() {
        let log = "\
ptxas info    : 1216 bytes gmem
ptxas info    : Function properties for helper
    64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 360 bytes cmem[0]
ptxas info    : Function properties for helper
    64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, used 0 barriers
ptxas info    : Compile time = 11.117 ms
";
        let one = Resources { entry: "one".to_owned(), registers: 19, ..Resources::default() };
        let two = Resources {
            entry: "two".to_owned(),
            registers: 255,
            shared_bytes: 1024,
            stack_bytes: 16,
            spill_bytes: 16,
        };
        assert_eq!(resources(log).unwrap(), [one, two]);
        assert!(resources("ptxas info    : 0 bytes gmem").is_err());
    }

    #[test]
    fn signatures_are_found() {
        let ptx = "\
.visible .global .align 4 .b8 table[4] = {0, 0, 0, 0};
.func hidden(\n\t.param .b32 hidden_param_0\n)\n{\n}
.visible .func  (.param .align 8 .b8 func_retval0[16]) sum(
	.param .b32 sum_param_0,
	.param .align 8 .b8 sum_param_1[40]
)                                       // @sum
{
}
.visible .entry kernel(
	.param .u64 .ptr .align 1 kernel_param_0
)
.maxntid 256, 1, 1
{
}
.visible .func nothing()
{
}
";
        let want = [
            ".entry kernel(.u64 .ptr .align 1) .maxntid 256, 1, 1",
            ".func (.align 8 .b8[16]) sum(.b32, .align 8 .b8[40])",
            ".func nothing()",
        ];
        assert_eq!(signatures(ptx), want);
        let both = [("sm_80", signatures(ptx)), ("sm_90", signatures(".visible .func nothing() {}"))];
        assert!(list(&both).ends_with("sm_80 sm_90: .func nothing()\n"), "{}", list(&both));
    }
}
