//! Checks the diffs in `docs/adopting.md`. Each diff must turn the program above it in the document
//! into the matching example of this crate, and must have fewer than ten lines.

const DOCUMENT: &str = include_str!("../../../../docs/adopting.md");

const MAX_CHANGED_LINES: usize = 9;

/// Returns the lines of the first code block in `language` (such as `diff`) after the heading
/// `## section`.
fn block<'a>(section: &str, language: &str) -> Vec<&'a str> {
    DOCUMENT
        .lines()
        .skip_while(|line| *line != format!("## {section}"))
        .skip_while(|line| *line != format!("```{language}"))
        .skip(1)
        .take_while(|line| *line != "```")
        .collect()
}

/// Applies a diff that has no context lines: each line of `change` begins with `-` or `+`. The
/// removed lines must occur in `before`, in the same order.
fn apply<'a>(before: &[&'a str], change: &[&'a str]) -> Vec<&'a str> {
    let mut rest = before.iter().copied().peekable();
    let mut after = Vec::new();
    for line in change {
        if let Some(added) = line.strip_prefix('+') {
            after.push(added);
            continue;
        }
        let removed = line.strip_prefix('-').expect("a line to remove");
        while let Some(kept) = rest.next_if(|line| *line != removed) {
            after.push(kept);
        }
        assert_eq!(rest.next(), Some(removed), "it must be in the program");
    }
    after.extend(rest);
    after
}

#[test]
fn the_changes_lead_to_the_examples_and_are_short() {
    for (section, example) in [
        ("hyper", include_str!("../../examples/adopted_hyper.rs")),
        ("axum", include_str!("../../examples/adopted_axum.rs")),
    ] {
        let change = block(section, "diff");
        assert!(
            (1..=MAX_CHANGED_LINES).contains(&change.len()),
            "{section}: {change:?}"
        );
        let after = apply(&block(section, "rust,no_run"), &change);
        let example = example.lines().skip_while(|line| line.starts_with("//!"));
        assert_eq!(after, example.skip(1).collect::<Vec<_>>(), "{section}");
    }
}
