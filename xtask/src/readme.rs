//! The README's tables, which the commands that measure them write.

use crate::shell::root;
use anyhow::{Context, Result};
use std::fs;

/// Puts a table where the README has the marks of the command that makes it, and prints it.
pub(crate) fn put_table(command_line: &str, table: &str) -> Result<()> {
    print!("{table}");
    let path = root().join("README.md");
    let text = fs::read_to_string(&path)?;
    fs::write(
        &path,
        replaced(&text, command_line, table)
            .with_context(|| format!("the README has no marks of `{command_line}`"))?,
    )?;
    Ok(())
}

fn replaced(text: &str, command_line: &str, table: &str) -> Option<String> {
    let marks =
        [format!("<!-- {command_line}: from here -->\n"), format!("<!-- {command_line}: to here -->\n")];
    let (before, rest) = text.split_once(&marks[0])?;
    let (_, after) = rest.split_once(&marks[1])?;
    Some(format!("{before}{}{table}{}{after}", marks[0], marks[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_marks_goes() {
        let text = "a\n<!-- x: from here -->\nold\n<!-- x: to here -->\nb\n";
        let new = replaced(text, "x", "new\n").expect("it has the marks");
        assert_eq!(new, text.replace("old", "new"));
        assert_eq!(replaced(text, "y", "new\n"), None);
    }
}
