//! Options of a command line in a file, for those that are used again and again.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use clap::{Arg, Command};
use toml::{Table, Value};

use crate::{Error, Result};

/// The option that names the file.
const OPTION: &str = "--recipe";
/// Of these only one may be given: one on the command line stands in for any in the file.
const RATES: [&str; 3] = ["bits", "size", "step"];

/// A command line with the options of the file that it names, if it names one: TOML with the long names of options of `command`. Those that the command line has itself are left out.
///
/// # Errors
/// The file cannot be read, is no TOML, or has something in it that is no option.
pub fn expand(mut line: Vec<OsString>, command: &Command) -> Result<Vec<OsString>> {
    let Some((place, path)) = line.iter().enumerate().find_map(|(place, word)| {
        if word == OPTION {
            return Some((place + 2, line.get(place + 1)?.clone()));
        }
        let path = word.to_str()?.strip_prefix(OPTION)?.strip_prefix('=')?;
        Some((place + 1, path.into()))
    }) else {
        return Ok(line);
    };
    let path = Path::new(&path);
    let text = fs::read_to_string(path).map_err(|error| Error::io("cannot read", path, error))?;
    let recipe: Table = text.parse().map_err(|error: toml::de::Error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Error::input(format!("is no TOML in line {line}: {}", error.message().replace('\n', " ")))
            .file(path)
            .remedy("write options as `bits = 4.0`, `codec = \"hadamard\"` or `finetune = true`")
    })?;
    let mut options = Vec::new();
    for (name, value) in &recipe {
        let known = command.get_arguments().find(|known| known.get_long() == Some(name));
        let Some(known) = known.filter(|_| format!("--{name}") != OPTION) else {
            return Err(Error::input(format!("there is no option {name:?} that a recipe could have"))
                .file(path)
                .remedy("use the long names of the options of `compress`, as its --help lists them"));
        };
        let said = |name: &str| line.iter().any(|word| is_option(word, name));
        let is_rate = RATES.contains(&name.as_str());
        if said(name) || is_rate && RATES.iter().any(|rate| said(rate)) {
            continue;
        }
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            options.extend(option(known, name, value).map_err(|error| error.file(path))?);
        }
    }
    line.splice(place..place, options);
    Ok(line)
}

/// Whether a word of a command line gives the option of this name.
fn is_option(word: &OsStr, name: &str) -> bool {
    let rest = word.to_str().and_then(|word| word.strip_prefix("--")?.strip_prefix(name));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// What a command line would say; nothing of a switch that is off.
fn option(known: &Arg, name: &str, value: &Value) -> Result<Option<OsString>> {
    let said = match (known.get_action().takes_values(), value) {
        (false, Value::Boolean(on)) => on.then(|| format!("--{name}")),
        // An option that may go without its value.
        (true, Value::Boolean(on)) if known.get_num_args().is_some_and(|count| count.min_values() == 0) => {
            on.then(|| format!("--{name}"))
        }
        (true, Value::String(text)) => Some(format!("--{name}={text}")),
        (true, Value::Integer(number)) => Some(format!("--{name}={number}")),
        (true, Value::Float(number)) => Some(format!("--{name}={number}")),
        (takes_values, _) => {
            let wanted = if takes_values { "a text, a number, or a list of these" } else { "true or false" };
            return Err(Error::input(format!("the option {name:?} has a value that it cannot have"))
                .remedy(format!("give {wanted}")));
        }
    };
    Ok(said.map(OsString::from))
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    #[test]
    fn the_command_line_counts_and_the_file_fills_in() {
        let switch = |name| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let command = Command::new("compress")
            .args(["bits", "size", "codec", "bits-for"].map(|name| Arg::new(name).long(name)))
            .args(["verbose", "force"].map(switch))
            .arg(Arg::new("finetune").long("finetune").num_args(0..=1).require_equals(true));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        let path_text = path.to_str().unwrap();
        let expanded = |text: &str, line: &str| {
            fs::write(&path, text).unwrap();
            let line = line.replace("FILE", path_text);
            let line = expand(line.split(' ').map(OsString::from).collect(), &command)?;
            let words: Vec<&str> = line.iter().map(|word| word.to_str().unwrap()).collect();
            Ok::<_, Error>(words.join(" ").replace(path_text, "FILE"))
        };
        let recipe = "bits = 3.5\ncodec = 'a b'\nfinetune = true\nforce = false\nverbose = true\nbits-for = ['q=4', 'k=5']\n";
        let all = "--bits=3.5 --bits-for=q=4 --bits-for=k=5 --codec=a b --finetune --verbose";
        assert_eq!(
            expanded(recipe, "nwc compress m --recipe FILE -o a").unwrap(),
            format!("nwc compress m --recipe FILE {all} -o a")
        );
        let some = "nwc compress --recipe=FILE --bits-for=q=4 --bits-for=k=5 --finetune --verbose --codec c --size=7";
        assert_eq!(expanded(recipe, "nwc compress --recipe=FILE --codec c --size=7").unwrap(), some);
        assert_eq!(
            expanded("finetune = 'tower'", "nwc --recipe FILE").unwrap(),
            "nwc --recipe FILE --finetune=tower"
        );
        assert_eq!(expanded("finetune = false", "nwc --recipe FILE").unwrap(), "nwc --recipe FILE");
        assert_eq!(expanded("nonsense", "nwc compress m").unwrap(), "nwc compress m");
        for (text, problem) in [
            ("bits 4", "line 1"),
            ("codec = 'x'\nbits", "line 2"),
            ("colour = 1", "\"colour\""),
            ("recipe = 'b'", "\"recipe\""),
            ("bits = {}", "\"bits\""),
            ("codec = true", "\"codec\""),
            ("force = 'yes'", "\"force\""),
        ] {
            let error = expanded(text, "nwc --recipe FILE").unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(path_text), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(expand(vec![OPTION.into(), path.clone().into()], &command).is_err());
    }
}
