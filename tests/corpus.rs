//! Every input that a fuzzer found worth keeping goes through its target again.

use std::fs;

use nwc_tests::fuzz::{TARGETS, corpus};

/// Runs all inputs of a target, and says how many there are.
fn replay(name: &str) -> usize {
    let (_, body) = TARGETS.iter().find(|(target, _)| *target == name).expect("it is a target");
    let folder = corpus().join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    files.sort();
    // One bad input must not hide the next.
    let failed: Vec<_> = files
        .iter()
        .filter(|path| {
            let input = fs::read(path).expect("the file can be read");
            std::panic::catch_unwind(|| body(&input)).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    files.len()
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                assert!(replay(stringify!($target)) > 0, "it has no inputs");
            }
        )*

        #[test]
        fn every_folder_is_that_of_a_target() {
            let mut named = vec![$(stringify!($target)),*];
            let mut targets = TARGETS.map(|(name, _)| name).to_vec();
            let mut folders: Vec<String> = fs::read_dir(corpus())
                .expect("there is a corpus")
                .map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned())
                .collect();
            named.sort_unstable();
            targets.sort_unstable();
            folders.sort_unstable();
            assert_eq!(named, targets);
            assert_eq!(folders, targets);
        }
    };
}

replayed!(open open_fixed tile differential roundtrip safetensors_input);
