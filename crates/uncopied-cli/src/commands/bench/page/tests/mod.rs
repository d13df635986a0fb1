mod browser;
mod fixture;
mod in_browser;
#[path = "../../../../../tests/it/skip.rs"]
#[allow(dead_code)] // Each crate of tests uses a part of it.
mod skip;

use super::page;
use super::panel::panels;
use crate::commands::bench::results::{Cell, Network, Results, Spread};

/// A text that does harm if it is not escaped: in HTML, in an attribute, and in a style.
const HOSTILE: &str = "<x-evil>\" onload=\"evil() 'x' & --><!-- </style></svg></title> {} ;";

/// Counts how often a text occurs.
fn count(page: &str, text: &str) -> usize {
    page.matches(text).count()
}

#[test]
fn every_text_is_escaped() {
    let mut results = fixture::results();
    results.machine.cpu = HOSTILE.to_owned();
    results.machine.kernel = HOSTILE.to_owned();
    results.setting.network = Network::Remote;
    results.setting.peer = Some(HOSTILE.to_owned());
    results.setting.congestion = HOSTILE.to_owned();
    results.setting.command = HOSTILE.to_owned();
    results.setting.cannot_show = vec![HOSTILE.to_owned()];
    for cell in &mut results.cells {
        cell.source = HOSTILE.to_owned();
        cell.sink = HOSTILE.to_owned();
        cell.mechanism.push_str(HOSTILE);
        cell.chosen = vec![HOSTILE.to_owned()];
        cell.refused = cell.refused.as_ref().map(|_| HOSTILE.to_owned());
    }
    for threshold in &mut results.thresholds {
        threshold.mechanism = HOSTILE.to_owned();
        threshold.than = HOSTILE.to_owned();
        threshold.why = HOSTILE.to_owned();
    }
    let page = page(&results);
    assert!(count(&page, "&lt;x-evil&gt;&quot; onload=&quot;") > 100);
    for forbidden in ["<x-evil", "\" onload", "-->", "<!--"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(count(&page, "</style>"), 1);
    assert_eq!(count(&page, "</svg>"), count(&page, "<svg"));
}

#[test]
fn the_page_needs_no_other_file() {
    let page = page(&fixture::results());
    assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline';"));
    for forbidden in [
        "http://", "https://", " src=", "@import", "<script", "<link",
    ] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(count(&page, "url("), count(&page, "url(#hatch-panel-"));
}

#[test]
fn every_plot_has_a_title_and_a_description() {
    let page = page(&fixture::results());
    let svgs: Vec<&str> = page.split("<svg").skip(1).collect();
    assert!(svgs.len() > 20);
    for svg in svgs {
        let (head, rest) = svg.split_once('>').unwrap();
        assert!(head.contains("role=\"img\""), "{head}");
        let desc = rest
            .strip_prefix("<title>")
            .and_then(|rest| rest.split_once("</title><desc>"))
            .and_then(|(_, rest)| rest.split_once("</desc>"));
        assert!(desc.is_some_and(|(desc, _)| !desc.is_empty()), "{rest}");
    }
}

#[test]
fn points_and_bars_tell_their_figures() {
    let page = page(&fixture::results());
    for text in [
        "<title>sendfile, 1 MiB: 0.137 (0.123–0.159) s/GB</title>",
        "<title>auto, 64 KiB: 0.170 (0.163–0.181) s/GB, moved by vmsplice</title>",
        "<title>send_zc, 16 MiB: 0.213 (0.198–0.237) s/GB \
         (the rounds differ too much to trust this)</title>",
        "<title>map_receive, 1 MiB: 92 % mapped, 8 % copied</title>",
        "<title>msg_zerocopy, 1 MiB: 100 % copied by the kernel after all</title>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // One hollow marker in each of the three plots, and one remark in the table.
    assert_eq!(count(&page, "mark hollow\""), 3);
    assert_eq!(count(&page, "wide spread</span>"), 1);
}

#[test]
fn the_sentences_say_what_is_cheapest_and_how_the_plan_does() {
    let page = page(&fixture::results());
    for text in [
        "Least CPU of the sender: copy up to 4 KiB, sendfile from 16 KiB on.",
        "The gain is greatest at 16 MiB: sendfile takes 44 % of the CPU time of copying.",
        "within 10 % of the cheapest mechanism at 8 of 9 sizes; the worst is 1 KiB, with 31 % more.",
        "Least CPU of the receiver: copy at every size that was measured.",
        "sendfile from 16 KiB on, copy below (default: at every size).",
        "The default stays: msg_zerocopy from 16 KiB on.",
        "map_receive never, always copy (default: from 16 KiB on).",
        "<b>map_receive at 1 KiB and 4 KiB</b>: payloads of this size do not fill a page",
        "map_receive_min_bytes = never\nmmap_write_min_bytes = 262144\n",
    ] {
        assert!(page.contains(text), "{text}");
    }
}

/// Changes the cost of a mechanism that sends memory, at 4 MiB.
fn set_cost(results: &mut Results, mechanism: &str, median: f64) {
    let mut cells = results.cells.iter_mut();
    let cell = cells.find(|cell| cell.mechanism == mechanism && cell.size == 4 << 20);
    cell.unwrap().sender_cpu_s_per_gb = Some(Spread {
        median,
        min: median,
        max: median,
    });
}

#[test]
fn equally_cheap_mechanisms_do_not_alternate() {
    let mut results = fixture::results();
    // send_zc is cheaper than vmsplice at one size, but by less than rounds differ.
    set_cost(&mut results, "send_zc", 0.087);
    let panels = panels(&results);
    let verdicts = panels[1].verdicts();
    let best: Vec<&str> = verdicts.iter().map(|verdict| verdict.best).collect();
    assert_eq!(best[..4], ["copy"; 4]);
    assert_eq!(best[4..], ["vmsplice"; 5]);
    // How much more the plan costs is relative to the lowest cost all the same.
    let excess = verdicts[6].excess.unwrap();
    assert!(
        (excess - (0.089 * 1.03 / 0.087 - 1.0)).abs() < 1e-9,
        "{excess}"
    );
}

#[test]
fn the_plan_is_not_compared_with_what_it_cannot_choose() {
    let mut results = fixture::results();
    set_cost(&mut results, "region-vmsplice", 0.01);
    let panels = panels(&results);
    let verdict = &panels[1].verdicts()[6];
    assert_eq!(verdict.best, "vmsplice");
    // What the plan has chosen is the cheapest mechanism, although its own row shows 3 % more.
    assert_eq!(verdict.excess, Some(0.0), "{verdict:?}");
    assert!(page(&results).contains("region-vmsplice (from: region)"));
}

#[test]
fn several_sources_of_a_direction_are_compared_apart() {
    let mut results = fixture::results();
    let is_copy = |cell: &&Cell| cell.direction == "memory_to_tcp" && cell.mechanism == "copy";
    let from_region = |cell: &Cell| Cell {
        source: "region".to_owned(),
        ..cell.clone()
    };
    let copies: Vec<Cell> = results
        .cells
        .iter()
        .filter(is_copy)
        .map(from_region)
        .collect();
    results.cells.extend(copies);
    let panels = panels(&results);
    let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "File to TCP socket",
            "Memory to TCP socket: pages → tcp",
            "Memory to TCP socket: region → tcp",
            "TCP socket to memory"
        ]
    );
    let names: Vec<&str> = panels[2].series.iter().map(|series| series.name).collect();
    assert_eq!(names, ["region-vmsplice", "copy"]);
}

#[test]
fn results_without_figures_have_a_page() {
    let without = |change: fn(&mut Cell)| {
        let mut results = fixture::results();
        results.cells.iter_mut().for_each(change);
        page(&results)
    };
    let refused = without(|cell| {
        cell.refused = Some("forbidden".to_owned());
    });
    assert_eq!(count(&refused, "No mechanism could be measured."), 3);
    assert!(refused.contains("<b>sendfile</b>: forbidden"));

    let unmeasured = without(|cell| {
        cell.gb_per_second = None;
        cell.sender_cpu_s_per_gb = None;
        cell.receiver_cpu_s_per_gb = None;
        cell.zero_copy_share = None;
        cell.kernel_copied_share = None;
        cell.copied_share = None;
        cell.mapped_share = None;
    });
    assert_eq!(count(&unmeasured, "Not measured in this run."), 3 * 4);

    // A peer that does not report its CPU time.
    let one_sided = without(|cell| cell.receiver_cpu_s_per_gb = None);
    assert_eq!(count(&one_sided, "Not measured in this run."), 3);
    assert!(one_sided.contains("Least CPU of the sender: copy"));

    let nothing = page(&Results {
        cells: Vec::new(),
        thresholds: Vec::new(),
        tuning: Default::default(),
        ..fixture::results()
    });
    assert!(nothing.contains("This run measured nothing."));
}

#[test]
fn figures_that_are_no_numbers_are_not_drawn() {
    let mut results = fixture::results();
    let values = [f64::NAN, f64::INFINITY, 0.0, -1.0];
    for (cell, value) in results.cells.iter_mut().zip(values.into_iter().cycle()) {
        let spread = Some(Spread {
            median: value,
            min: value,
            max: value,
        });
        cell.gb_per_second = spread;
        cell.sender_cpu_s_per_gb = spread;
        cell.zero_copy_share = Some(value);
    }
    let page = page(&results);
    for svg in page.split("<svg").skip(1) {
        let svg = svg.split("</svg>").next().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn the_head_names_the_machine_and_the_network() {
    let mut results = fixture::results();
    assert!(page(&results).contains("AMD EPYC 7B13, Linux 6.18.44, over loopback."));
    results.setting.network = Network::Netns;
    assert!(page(&results).contains("over veth between two network namespaces."));
    results.setting.network = Network::Remote;
    results.setting.peer = Some("192.0.2.1".to_owned());
    let page = page(&results);
    for text in [
        "over a network, to 192.0.2.1.",
        "<dt>congestion control</dt><dd>cubic</dd>",
        "<dt>memory</dt><dd>23.5 GiB</dd>",
        "<dt>sender, receiver</dt><dd>CPU 0, CPU 1</dd>",
        "<dt>each cell</dt><dd>7 × 0.25 s</dd>",
        "<code>uncopied bench --report bench.html</code>",
    ] {
        assert!(page.contains(text), "{text}");
    }
}
