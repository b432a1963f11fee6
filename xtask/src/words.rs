//! No source file holds a reminder of unfinished work: it belongs in an issue, where somebody sees it.

use crate::shell::root;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// In two halves, so that this file passes its own check.
const FORBIDDEN: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

pub(crate) fn check() -> Result<()> {
    let mut files = Vec::new();
    find_sources(root(), &mut files)?;
    ensure!(!files.is_empty(), "no .rs file found in {}", root().display());

    let mut found = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        found.extend(forbidden_lines(&text).map(|number| format!("{}:{number}", path.display())));
    }
    ensure!(found.is_empty(), "{} in:\n{}", FORBIDDEN.join(", "), found.join("\n"));
    println!("{} source files, none with {}", files.len(), FORBIDDEN.join(", "));
    Ok(())
}

/// The numbers of the lines with a forbidden word, from 1.
fn forbidden_lines(text: &str) -> impl Iterator<Item = usize> {
    let lines = text.lines().zip(1..);
    lines.filter(|(line, _)| FORBIDDEN.iter().any(|word| line.contains(word))).map(|(_, number)| number)
}

/// Every `.rs` file below, but for build outputs and hidden folders. It walks the tree instead of asking git,
/// so that it works in an unpacked archive too.
fn find_sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            find_sources(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forbidden_word_is_found() {
        for word in FORBIDDEN {
            let text = format!("fn main() {{\n    // {word}: later\n}}\n");
            assert_eq!(forbidden_lines(&text).collect::<Vec<_>>(), [2], "{word}");
        }
        assert_eq!(forbidden_lines("fn main() {}\n").count(), 0);
    }
}
