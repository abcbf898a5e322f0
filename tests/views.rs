//! Several views of one item: the index's answer from all of them, its fit, and a frame that shows one item twice.

mod support;

use std::fs;
use std::path::Path;

use loupe::capture;
use loupe::matching::{
    AcceptRule, BuildOptions, Embedding, Fit, FitRow, IndexBuilder, Learning, PartIndex, Seen, Template, fitting,
};
use loupe::types::{Digest, Image};
use serde_json::Value;
use support::{Assets, fail_with, loupe, samples, succeed, text};

const DIM: usize = 24;
const PARTS: usize = 30;
const VIEWS: usize = 3;
const NOISE: f32 = 0.9;
const EVERYTHING: AcceptRule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: f32::INFINITY };

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= norm);
    vector
}

fn centre(part: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(part as u64 + 100);
    unit((0..DIM).map(|_| rng.f32() - 0.5).collect())
}

fn build(dir: &Path) -> PartIndex {
    let embedding = Embedding {
        model: "test".to_owned(),
        model_sha256: Digest::of(b"m"),
        input_px: 128,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    };
    let mut builder = IndexBuilder::new(DIM, embedding, BuildOptions::default());
    for part in 0..PARTS {
        let template = Template { part_id: part.to_string(), color_id: None, view: "0".to_owned() };
        builder.push(template, &centre(part)).unwrap();
    }
    builder.build(dir).unwrap();
    PartIndex::open(dir).unwrap()
}

/// `count` items, each seen in [`VIEWS`] noisy views: the part and the views' vectors.
fn items(seed: u64, count: usize) -> Vec<(usize, Vec<f32>)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut view = |part: usize| unit(centre(part).iter().map(|v| v + NOISE * (rng.f32() - 0.5)).collect());
    (0..count).map(|at| (at % PARTS, (0..VIEWS).flat_map(|_| view(at % PARTS)).collect())).collect()
}

fn rows(index: &PartIndex, items: &[(usize, Vec<f32>)], views: usize) -> Vec<FitRow> {
    let row = |(part, vectors): &(usize, Vec<f32>)| {
        let top = index.search_views_exact(&vectors[..views * DIM]).unwrap().evidence.top_k;
        let scored = index.scored_views(&top, &vec![Seen::default(); views]);
        FitRow { part_id: part.to_string(), candidates: top.into_iter().map(|r| r.part_id).zip(scored).collect() }
    };
    items.iter().map(row).collect()
}

#[test]
fn several_views_name_more_than_one_and_say_how_sure_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path());
    let known = items(1, 600);
    let mut fit = fitting::fit(index.generation_sha256(), &rows(&index, &known, 1), 0.0, 0.02).unwrap();
    let several = fitting::several(&rows(&index, &known, VIEWS), 0.0, 0.02).unwrap();
    assert!(several.plain.accepted_ratio > fit.plain.accepted_ratio + 0.1, "{several:?} against {:?}", fit.plain);
    fit.several.insert(3, several);
    fit.store(dir.path(), &index.generation_name()).unwrap();

    let index = PartIndex::open(dir.path()).unwrap();
    assert_eq!(index.fit(), Some(&fit), "the fit comes back whole");
    let (mut one, mut all, mut wrong) = (0, 0, 0);
    for (part, vectors) in items(2, 300) {
        let part = part.to_string();
        let single = index.search(&vectors[..DIM], EVERYTHING).unwrap().remove(0);
        one += usize::from(index.fuse(single, &Seen::default()).part_id == part);
        let together = index.search_views(&vectors, EVERYTHING, Learning::default()).unwrap();
        assert_eq!(together.alone.len(), VIEWS);
        let fused = index.fuse_views(together.evidence, &vec![Seen::default(); VIEWS]);
        all += usize::from(fused.part_id == part);
        let is_accepted = fused.probability.unwrap() > fused.required_probability.unwrap();
        wrong += usize::from(is_accepted && fused.part_id != part);
    }
    assert!(all > one + 15, "{one} by one view, {all} by {VIEWS}, of 300");
    assert!(wrong <= 9, "{wrong} of 300 accepted and wrong");
}

#[test]
fn equal_views_say_what_one_says_and_an_unfitted_number_of_views_has_no_probability() {
    let dir = tempfile::tempdir().unwrap();
    let index = build(dir.path());
    let fit = fitting::fit(index.generation_sha256(), &rows(&index, &items(1, 300), 1), 0.0, 0.02).unwrap();
    fit.store(dir.path(), &index.generation_name()).unwrap();
    let index = PartIndex::open(dir.path()).unwrap();
    let (_, vectors) = items(3, 1).remove(0);
    let one = &vectors[..DIM];
    let single = index.search(one, EVERYTHING).unwrap().remove(0);
    let twice = index.search_views(&[one, one].concat(), EVERYTHING, Learning::default()).unwrap().evidence;
    let of =
        |e: &loupe::types::MatchEvidence| e.top_k.iter().map(|r| (r.part_id.clone(), r.template)).collect::<Vec<_>>();
    assert_eq!(of(&single), of(&twice));
    for (a, b) in single.top_k.iter().zip(&twice.top_k) {
        assert!((a.similarity - b.similarity).abs() < 1e-6);
        assert!((a.likeness.unwrap() - b.likeness.unwrap()).abs() < 1e-6);
    }
    let unfitted = index.fuse_views(twice, &vec![Seen::default(); 2]);
    assert_eq!((unfitted.probability, unfitted.required_probability), (None, None), "nothing was learned of two views");
    assert!(unfitted.top_k.len() <= 5);
    assert!(index.search_views(&[f32::NAN; DIM], EVERYTHING, Learning::default()).is_err());
    let none = fitting::several(&rows(&index, &items(4, 10), VIEWS), 0.0, 0.02).unwrap_err().to_string();
    assert!(none.contains("10 pictures"), "{none}");
    assert!(Fit::load(&Fit::path(dir.path(), &index.generation_name()), index.generation_sha256()).is_ok());
}

/// Pictures of the samples side by side on white, 200 px each.
fn mosaic(path: &Path, files: &[&str]) {
    let tiles: Vec<Image> =
        files.iter().map(|file| capture::read_image(&samples().join("parts").join(file)).unwrap()).collect();
    let (width, height) = (200 * tiles.len(), 200);
    let mut bgr = vec![240_u8; width * height * 3];
    for (at, tile) in tiles.iter().enumerate() {
        for y in 0..tile.height_px().min(180) {
            let row = tile.row(y);
            let columns = row.len().min(180 * 3);
            let start = ((y as usize + 10) * width + at * 200 + 10) * 3;
            bgr[start..start + columns].copy_from_slice(&row[..columns]);
        }
    }
    let image = Image::from_bgr(u32::try_from(width).unwrap(), 200, bgr).unwrap();
    fs::write(path, capture::encode_png(&image).unwrap()).unwrap();
}

fn recipe(folder: &Path, locate: &str, matching: &str) -> std::path::PathBuf {
    let path = folder.join("recipe.toml");
    let (index, model) = (Assets::get().index(), support::root().join("models/mobilenetv2"));
    let body = format!(
        "name = \"mirrors\"\n[locate]\n{locate}\n[match]\nindex = {index:?}\nmodel = {model:?}\n{matching}\n\
         [quality.limits]\nmin_sharpness = 0.0\n"
    );
    fs::write(&path, body).unwrap();
    path
}

fn first_template(part: &str, view: usize) -> String {
    let csv = fs::read_to_string(samples().join("parts/templates.csv")).unwrap();
    let of_part = csv.lines().filter(|line| line.split(',').nth(1) == Some(part)).nth(view);
    of_part.unwrap().split(',').next().unwrap().to_owned()
}

fn some_parts() -> Vec<String> {
    let csv = fs::read_to_string(samples().join("parts/parts.csv")).unwrap();
    csv.lines().skip(1).take(3).map(|line| line.split(',').next().unwrap().to_owned()).collect()
}

const REGIONS: &str = "kind = \"regions\"\nregions = [[0, 0, 200, 200], [200, 0, 400, 200]]";

#[test]
fn two_mirrors_show_one_item_and_another_number_of_views_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let part = &some_parts()[0];
    let (picture, small) = (dir.path().join("two.png"), dir.path().join("one.png"));
    mosaic(&picture, &[&first_template(part, 0), &first_template(part, 1)]);
    mosaic(&small, &[&first_template(part, 0)]);
    let inspect = |recipe: &Path, picture: &Path| -> Value {
        let state = tempfile::tempdir().unwrap();
        support::inspect(recipe, state.path(), &[picture.to_owned()]).remove(0)
    };
    let recipe_path =
        recipe(dir.path(), REGIONS, "views = 2\naccept_similarity = 0.5\naccept_margin = 0.0\ngroup_margin = 0.0");
    let found = inspect(&recipe_path, &picture);
    let items = found["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{found}");
    assert_eq!(items[0]["part_id"].as_str(), Some(part.as_str()), "{found}");
    assert_eq!(items[0]["bbox"], serde_json::json!([0.0, 0.0, 400.0, 200.0]));
    let views = items[0]["views"].as_array().unwrap();
    assert_eq!(views.len(), 2);
    let mean: f64 = views.iter().map(|view| view["similarity"].as_f64().unwrap()).sum::<f64>() / 2.0;
    assert!(items[0]["similarity"].as_f64().unwrap() <= mean + 1e-6, "each view's own best is the most it can be");

    let outside = inspect(&recipe_path, &small);
    assert_eq!(outside["verdict"], "hold", "{outside}");
    assert!(outside["reasons"].to_string().contains("locate.region_outside"), "{outside}");

    let blobs = recipe(dir.path(), "kind = \"blob\"", "views = 2\naccept_similarity = 0.5\naccept_margin = 0.0");
    let single = inspect(&blobs, &small);
    assert_eq!(single["verdict"], "hold", "{single}");
    let reasons = single["reasons"].to_string();
    assert!(reasons.contains("locate.view_count") || reasons.contains("locate.nothing_found"), "{single}");
    assert!(single["items"].as_array().unwrap().iter().all(|item| item["part_id"].is_null()), "{single}");
}

#[test]
fn what_is_seen_in_a_mirror_is_turned_back_and_taught_so() {
    let dir = tempfile::tempdir().unwrap();
    let parts = some_parts();
    let (picture, in_mirror) = (dir.path().join("direct.png"), dir.path().join("mirror.png"));
    mosaic(&picture, &[&first_template(&parts[0], 2)]);
    let image = capture::read_image(&picture).unwrap();
    let flipped = (0..200).flat_map(|y| image.row(y).chunks_exact(3).rev().flatten().copied().collect::<Vec<u8>>());
    let flipped = Image::from_bgr(200, 200, flipped.collect()).unwrap();
    fs::write(&in_mirror, capture::encode_png(&flipped).unwrap()).unwrap();
    let state = dir.path().join("state");
    let seen = |picture: &Path, mirrors: &str| -> Value {
        let path = recipe(dir.path(), "kind = \"whole\"", &format!("accept_similarity = 0.995\n{mirrors}"));
        support::inspect(&path, &state, &[picture.to_owned()]).remove(0)
    };
    let similarity = |line: &Value| line["items"][0]["matched"]["similarity"].as_f64().unwrap();
    let mirrors = "mirrors = [[0, 0, 200, 200]]";
    let (direct, turned, unsaid) = (seen(&picture, ""), seen(&in_mirror, mirrors), seen(&in_mirror, ""));
    let [direct, turned_back, unsaid] = [&direct, &turned, &unsaid].map(similarity);
    assert!((direct - turned_back).abs() < 1e-4, "{direct} and {turned_back}");
    assert!((direct - unsaid).abs() > 2e-3, "{direct} and {unsaid}: this picture could not tell");
    let elsewhere = similarity(&seen(&in_mirror, "mirrors = [[0, 0, 60, 200]]"));
    assert!((elsewhere - unsaid).abs() < 1e-6, "the box's middle is not in it");

    // Taught from what was seen in the mirror, the part is known when it is seen directly.
    let code = turned["code"].as_str().unwrap();
    recipe(dir.path(), "kind = \"whole\"", &format!("accept_similarity = 0.995\n{mirrors}"));
    let mut review = loupe();
    review.args(["review", code, "--author", "Kim", "--part", &parts[1], "--state"]).arg(&state);
    succeed(review.arg("--recipe").arg(dir.path().join("recipe.toml")));
    let known = seen(&picture, "");
    assert_eq!(known["items"][0]["matched"]["tier"], "delta", "{known}");
    assert!(similarity(&known) > 0.9999, "{known}");
}

#[test]
fn what_a_recipe_says_of_views_and_regions_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    for (locate, matching, words) in [
        ("kind = \"whole\"", "views = 2", "let the source put 2 pictures together"),
        (REGIONS, "views = 3", "`[locate]` has 2 regions"),
        (REGIONS, "views = 1", "must be 2 to 16"),
        ("kind = \"whole\"", "mirrors = [[40, 0, 20, 20]]", "match.mirrors: has [40.0, 0.0, 20.0, 20.0], which is no"),
        ("kind = \"regions\"", "", "list [x1, y1, x2, y2]"),
        ("kind = \"regions\"\nregions = [[10, 0, 10, 20]]", "", "which is no [x1, y1, x2, y2]"),
        ("kind = \"blob\"\nregions = [[0, 0, 10, 20]]", "", "counts with `kind = \"regions\"` only"),
    ] {
        let path = recipe(dir.path(), locate, matching);
        let message = fail_with(loupe().args(["inspect", "--recipe"]).arg(&path).arg(dir.path()), 78);
        assert!(message.contains(words), "{locate}, {matching}: {message}");
    }
}

#[test]
fn rows_of_one_item_are_fitted_and_judged_together() {
    let dir = tempfile::tempdir().unwrap();
    let csv = fs::read_to_string(samples().join("parts/queries.csv")).unwrap();
    let column = csv.lines().next().unwrap().split(',').position(|name| name == "part_num").unwrap();
    let with_item: Vec<String> = csv
        .lines()
        .enumerate()
        .map(|(at, line)| format!("{line},{}", if at == 0 { "item" } else { line.split(',').nth(column).unwrap() }))
        .collect();
    let queries = dir.path().join("queries.csv");
    fs::write(&queries, with_item.join("\n")).unwrap();
    let index = Assets::get().index();
    let root = samples().join("parts");
    let model = support::root().join("models/mobilenetv2");
    let judged = |queries: &Path| -> Value {
        let output = succeed(
            loupe()
                .args(["index", "evaluate", "--json", "--index"])
                .arg(&index)
                .arg("--queries")
                .arg(queries)
                .arg("--root")
                .arg(&root)
                .arg("--model")
                .arg(&model),
        );
        serde_json::from_str(&text(&output.stdout)).unwrap()
    };
    let (alone, together) = (judged(&root.join("queries.csv")), judged(&queries));
    assert!(alone["views"].is_null());
    let views = &together["views"];
    assert!(views["items"].as_u64().unwrap() > 1, "{together}");
    assert!(views["top1"].as_f64() >= together["top1"].as_f64(), "{together}");
    assert!(views["top1_fused"].is_null(), "there is no fit");
}

/// A sample's picture under another name, a little darker the higher `step` is: never the same bytes twice.
fn view(folder: &Path, name: &str, file: &str, step: u8) {
    let image = capture::read_image(&samples().join("parts").join(file)).unwrap();
    let bgr = image.bgr().iter().map(|value| value.saturating_sub(step)).collect();
    let image = Image::from_bgr(image.width_px(), image.height_px(), bgr).unwrap();
    fs::write(folder.join(name), capture::encode_png(&image).unwrap()).unwrap();
}

#[test]
fn pictures_of_one_item_are_one_frame_and_a_doubtful_view_holds_it() {
    use loupe::config::Recipe;
    use loupe::decide::{Decision, Evidence, decide};

    let dir = tempfile::tempdir().unwrap();
    let (state, pictures) = (dir.path().join("state"), dir.path().join("in"));
    fs::create_dir(&pictures).unwrap();
    let part = &some_parts()[0];
    let (left, top) = (first_template(part, 0), first_template(part, 1));
    // Whole; without its second view; one view grey; one camera frozen since the unit before.
    view(&pictures, "box1_left.png", &left, 0);
    view(&pictures, "box1_top.png", &top, 0);
    view(&pictures, "box2_left.png", &left, 1);
    view(&pictures, "box3_left.png", &left, 2);
    let grey = Image::from_bgr(90, 90, vec![120; 90 * 90 * 3]).unwrap();
    fs::write(pictures.join("box3_top.png"), capture::encode_png(&grey).unwrap()).unwrap();
    view(&pictures, "box4_left.png", &left, 2);
    view(&pictures, "box4_top.png", &top, 4);
    let body = "views = 2\naccept_similarity = 0.5\naccept_margin = 0.0\ngroup_margin = 0.0";
    let recipe_path = recipe(dir.path(), "kind = \"whole\"", body);
    let output = succeed(
        loupe()
            .args(["inspect", "--json", "--views", "2", "--artifacts", "all", "--recipe"])
            .arg(&recipe_path)
            .arg("--state")
            .arg(&state)
            .arg(&pictures),
    );
    let found: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |unit: &str| {
        let is_it = |line: &&Value| line["source"].as_str().unwrap().ends_with(&format!("{unit}_*"));
        found.iter().find(is_it).unwrap_or_else(|| panic!("{unit} of {found:?}"))
    };
    assert_eq!(found.len(), 4);
    let whole = of("box1");
    assert_eq!(whole["verdict"], "pass", "{whole}");
    assert_eq!(whole["items"].as_array().unwrap().len(), 1);
    assert_eq!(whole["items"][0]["part_id"].as_str(), Some(part.as_str()));
    assert_eq!(whole["items"][0]["views"].as_array().unwrap().len(), 2);
    assert_eq!(whole["views"].as_array().unwrap().len(), 2);
    assert_eq!(whole["quality"]["views"].as_array().unwrap().len(), 2);
    for (unit, reason) in [("box2", "source.view_missing"), ("box3", "frame.low_contrast"), ("box4", "frame.frozen")] {
        let line = of(unit);
        assert_eq!(line["verdict"], "hold", "{line}");
        assert!(line["reasons"].to_string().contains(reason), "{unit}: {}", line["reasons"]);
    }

    let rule = Recipe::load(&recipe_path).unwrap();
    for inspection in loupe::ledger::LedgerReader::open(&state).unwrap().recent(10).unwrap() {
        let again = decide(&Evidence::of(&inspection), loupe::pipeline::criteria(&rule));
        let Decision::Decided { verdict, reasons, items } = again else { panic!("{} is now ignored", inspection.code) };
        assert_eq!((verdict, &reasons, &items), (inspection.verdict, &inspection.reasons, &inspection.items));
    }
    let surface = support::plate_recipe(dir.path(), &Assets::get().bank(), "");
    let refused = fail_with(loupe().args(["inspect", "--views", "2", "--recipe"]).arg(&surface).arg(&pictures), 78);
    assert!(refused.contains("judges one picture"), "{refused}");
    let blobs = recipe(dir.path(), "kind = \"blob\"", "views = 2");
    let refused = fail_with(loupe().args(["inspect", "--views", "40", "--recipe"]).arg(&blobs).arg(&pictures), 1);
    assert!(refused.contains("must be 2 to 16"), "{refused}");
}
