//! The page in a real browser.

use std::fs;

use serde_json::{Value, json};

use super::browser::{Browser, is_installed};
use super::fixture;
use super::skip::skip;
use crate::commands::bench::page::page;

/// Finds what is wrong with the layout of the page. Returns sentences.
const FAULTS: &str = "(() => {
    const faults = [];
    const name = (element) =>
        `${element.tagName}.${element.getAttribute('class')} '${element.textContent.slice(0, 40)}'`;
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth)
        faults.push(`the page is ${root.scrollWidth} pixels wide, the window ${root.clientWidth}`);
    for (const element of document.querySelectorAll('main *')) {
        // Tables, code and ribbons have a width of their own, and scroll or end with an ellipsis.
        const isFree = element.closest('svg, .scroll, pre, .run');
        const right = element.getBoundingClientRect().right;
        if (!isFree && right > root.clientWidth) faults.push(`${name(element)} ends at ${right}`);
    }
    for (const svg of document.querySelectorAll('svg')) {
        const outer = svg.getBoundingClientRect();
        const box = svg.getBBox();
        if (!(box.width > 0 && box.height > 0 && outer.width > 0 && outer.height > 0))
            faults.push(`${name(svg)} is empty`);
        for (const shape of svg.querySelectorAll('path, line, rect, polygon, circle, text')) {
            if (shape.closest('defs')) continue;
            const inner = shape.getBoundingClientRect();
            if (inner.width + inner.height == 0) faults.push(`${name(shape)} has no extent`);
            const isInside = inner.left >= outer.left - 1 && inner.right <= outer.right + 1
                && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
            if (!isInside) faults.push(`${name(shape)} leaves its SVG`);
        }
        const texts = [...svg.querySelectorAll('text')].map((text) =>
            [text, text.getBoundingClientRect()]);
        for (const [index, [one, a]] of texts.entries())
            for (const [other, b] of texts.slice(index + 1)) {
                const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                // Boxes of text contain the space above and below the letters.
                if (x > 1 && y > a.height / 3) faults.push(`${name(one)} covers ${name(other)}`);
            }
        const size = svg.querySelector('text');
        const pixels = size && parseFloat(getComputedStyle(size).fontSize)
            * outer.width / svg.viewBox.baseVal.width;
        if (size && pixels < 9) faults.push(`${name(svg)} has text of ${pixels} pixels`);
    }
    return faults;
})()";

/// The contrast of a text with the card that it is on, as in WCAG 2: from 1 to 21.
const CONTRASTS: &str = "(() => {
    const luminance = (colour) => {
        const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
            const value = part / 255;
            return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
        });
        return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
    };
    const card = luminance(getComputedStyle(document.querySelector('.card')).backgroundColor);
    return [['h2', 'color'], ['.unit', 'color'], ['.tick', 'fill'], ['a', 'color']].map(
        ([selector, property]) => {
            const element = document.querySelector(`.card ${selector}`);
            const text = luminance(getComputedStyle(element)[property]);
            return (Math.max(text, card) + .05) / (Math.min(text, card) + .05);
        });
})()";

/// Opens a page at several widths, in both colour schemes.
fn check_layout(browser: &mut Browser, page: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bench.html");
    fs::write(&file, page).unwrap();
    let url = json!(format!("file://{}", file.display()));
    for scheme in ["light", "dark"] {
        for width in [360, 800, 1600] {
            browser.emulate(width, scheme, "screen");
            browser.open(&file);
            let faults = browser.evaluate(FAULTS);
            assert_eq!(faults, json!([]), "{width} pixels, {scheme}");
            assert!(browser.console().is_empty(), "{:?}", browser.console());
            assert_eq!(browser.requests(), [&url]);
        }
    }
}

#[test]
fn a_browser_shows_the_page_at_any_width_and_in_both_schemes() {
    if !is_installed() {
        return skip(
            "a_browser_shows_the_page_at_any_width_and_in_both_schemes",
            "chromium is not installed (apt-get install chromium)",
        );
    }
    let mut browser = Browser::start();
    check_layout(&mut browser, &page(&fixture::results()));
    check_layout(&mut browser, &page(&fixture::crowded()));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bench.html");
    fs::write(&file, page(&fixture::results())).unwrap();
    let mut corner_in = |scheme| {
        browser.emulate(800, scheme, "screen");
        browser.open(&file);
        let contrasts = browser.evaluate(CONTRASTS);
        for contrast in contrasts.as_array().unwrap() {
            assert!(contrast.as_f64().unwrap() >= 4.5, "{scheme}: {contrasts}");
        }
        browser.picture_of_corner()
    };
    let (light, dark) = (corner_in("light"), corner_in("dark"));
    assert_ne!(light, dark);
    assert_eq!(light, corner_in("light"));
}

#[test]
fn a_browser_prints_the_tables() {
    if !is_installed() {
        return skip(
            "a_browser_prints_the_tables",
            "chromium is not installed (apt-get install chromium)",
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bench.html");
    fs::write(&file, page(&fixture::results())).unwrap();
    let mut browser = Browser::start();
    let mut are_tables_visible = |medium| {
        browser.emulate(800, "dark", medium);
        browser.open(&file);
        browser.evaluate(
            "[...document.querySelectorAll('table')].map((table) => table.checkVisibility())",
        )
    };
    assert_eq!(are_tables_visible("screen"), json!([false, false, false]));
    assert_eq!(are_tables_visible("print"), json!([true, true, true]));
    let width = browser.evaluate("document.documentElement.scrollWidth");
    assert_eq!(width, json!(800));
    let paper = browser.evaluate("getComputedStyle(document.body).backgroundColor");
    assert_eq!(paper, Value::from("rgb(255, 255, 255)"));
}
