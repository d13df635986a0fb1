//! The looks of the mechanisms: a colour that people with any kind of colour vision tell from the
//! others, and a marker of its own.

use std::f64::consts::FRAC_1_SQRT_2;

use maud::{Markup, html};

use super::axis::px;

/// How many looks differ in colour. The style sheet has the colours, as `--c0` and so on.
const LOOKS: usize = 7;

/// The colour and the marker of a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    index: usize,
    /// Whether another mechanism of the same panel has the same colour and marker.
    is_dashed: bool,
}

/// The index of the look of what the plan chooses.
const AUTO_INDEX: usize = LOOKS;

impl Look {
    /// What the plan chooses: a broad, bright line below the others, as of a highlighter, so that
    /// one sees which line it follows.
    pub(super) const AUTO: Self = Self {
        index: AUTO_INDEX,
        is_dashed: false,
    };

    /// Gives each mechanism of a panel a look: the one that it has in all panels if it is still
    /// free, and any other one otherwise.
    pub(super) fn assign(mechanisms: &[&str]) -> Vec<Self> {
        let mut is_taken = [false; LOOKS];
        let mut looks: Vec<Option<usize>> = mechanisms
            .iter()
            .map(|mechanism| usual_look(mechanism).filter(|look| !claim(&mut is_taken, *look)))
            .collect();
        let mut repeated = 0;
        for look in looks.iter_mut().filter(|look| look.is_none()) {
            *look = (0..LOOKS).find(|free| !claim(&mut is_taken, *free));
            repeated += usize::from(look.is_none());
            look.get_or_insert(repeated % LOOKS);
        }
        let mut seen = [false; LOOKS];
        let dashed = |index: usize| Self {
            index,
            is_dashed: claim(&mut seen, index),
        };
        looks.into_iter().flatten().map(dashed).collect()
    }

    /// The class that sets the colour.
    pub(super) fn class(self) -> String {
        match self.index {
            AUTO_INDEX => "auto".to_owned(),
            index => format!("c{index}"),
        }
    }

    /// The class of the line.
    pub(super) fn line_class(self) -> &'static str {
        match self {
            Self::AUTO => "band",
            Self { is_dashed, .. } if is_dashed => "line dashed",
            _ => "line",
        }
    }

    /// The marker with its centre at a point. Hollow if the figure is not to be trusted.
    pub(super) fn marker(self, x: f64, y: f64, is_hollow: bool) -> Markup {
        let class = if is_hollow { "mark hollow" } else { "mark" };
        let outline = |points: &[(f64, f64)]| {
            let point = |(dx, dy): &(f64, f64)| format!("{},{}", px(x + dx), px(y + dy));
            let points: Vec<String> = points.iter().map(point).collect();
            html! { polygon class=(class) points=(points.join(" ")) {} }
        };
        match self.index {
            0 => html! { circle class=(class) cx=(px(x)) cy=(px(y)) r="3.4" {} },
            1 => outline(&[(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)]),
            2 => outline(&[(0.0, -4.2), (4.2, 3.2), (-4.2, 3.2)]),
            3 => outline(&[(0.0, -4.5), (4.5, 0.0), (0.0, 4.5), (-4.5, 0.0)]),
            4 => outline(&[(0.0, 4.2), (4.2, -3.2), (-4.2, -3.2)]),
            5 => outline(&CROSS),
            AUTO_INDEX => html! { circle class=(class) cx=(px(x)) cy=(px(y)) r="6.5" {} },
            // The cross, turned by an eighth.
            _ => outline(
                &CROSS.map(|(dx, dy)| ((dx + dy) * FRAC_1_SQRT_2, (dy - dx) * FRAC_1_SQRT_2)),
            ),
        }
    }
}

/// An upright cross.
const CROSS: [(f64, f64); 12] = [
    (-1.3, -4.5),
    (1.3, -4.5),
    (1.3, -1.3),
    (4.5, -1.3),
    (4.5, 1.3),
    (1.3, 1.3),
    (1.3, 4.5),
    (-1.3, 4.5),
    (-1.3, 1.3),
    (-4.5, 1.3),
    (-4.5, -1.3),
    (-1.3, -1.3),
];

/// The look that a mechanism has in every panel, unless two of one panel have the same.
fn usual_look(mechanism: &str) -> Option<usize> {
    match mechanism {
        "copy" => Some(0),
        "sendfile" | "vmsplice" | "map_receive" | "discard" => Some(1),
        "splice" | "msg_zerocopy" => Some(2),
        "mmap_write" | "zcrx" | "copy_file_range" => Some(3),
        "send_zc" => Some(4),
        region if region.starts_with("region") => Some(3),
        _ => None,
    }
}

/// Marks a look as taken. Returns whether it was taken before.
fn claim(is_taken: &mut [bool; LOOKS], look: usize) -> bool {
    std::mem::replace(&mut is_taken[look], true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_of_a_panel_look_different() {
        let looks = Look::assign(&["region", "x", "copy", "vmsplice", "region-copy", "y", "z"]);
        for (index, look) in looks.iter().enumerate() {
            assert!(!looks[index + 1..].contains(look), "{looks:?}");
            assert!(!look.is_dashed);
        }
        assert_eq!(looks[2].index, 0);
        assert_eq!(looks[3].index, 1);
    }

    #[test]
    fn more_mechanisms_than_looks_are_dashed() {
        let looks = Look::assign(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
        let dashed = looks.iter().filter(|look| look.is_dashed).count();
        assert_eq!((looks.len(), dashed), (9, 2));
    }
}
