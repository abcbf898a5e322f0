#!/usr/bin/env python3
"""Render everything in this folder again: parts/, belt/ and plate/.

    pip install moderngl==5.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93     (and ffmpeg, EGL)
    python samples/make_samples.py --renderer DIR --ldraw DIR --out DIR [parts] [belt] [plate]

--renderer  the folder with the modules `ldrender` and `bg` of an LDraw renderer (mesh, light, camera; backgrounds)
--ldraw     an LDraw parts library (https://www.ldraw.org/): parts/, p/, LDConfig.ldr
Seeds are fixed: the same renderer on the same OpenGL gives the same pictures.
"""
import argparse, csv, hashlib, json, os, pathlib, re, subprocess, sys, tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for option in ("--renderer", "--ldraw", "--out"):
    parser.add_argument(option, required=True)
parser.add_argument("what", nargs="*", default=["parts", "belt", "plate"])
ARGS = parser.parse_args()
os.environ["LDRAW_LIB"] = ARGS.ldraw
sys.path.insert(0, ARGS.renderer)
import cv2, numpy as np, ldrender as ld
from bg import augment, background, fbm

OUT, SALT = pathlib.Path(ARGS.out), "loupe samples 1"
COLOURS = [0, 1, 2, 4, 14, 15, 19, 25, 71, 72]
CATALOGUE = {  # confusion group: (category, parts); two mirror pairs, several families that differ in length only
    "brick_2xN_len": ("Brick", "3003 3001"), "brick_1xN_len": ("Brick", "3004 3010 3009"),
    "plate_1xN_len": ("Plate", "3023 3710"), "plate_2xN_len": ("Plate", "3020"),
    "slope45_2xN_len": ("Slope", "3039"), "slope_inverted_var": ("Slope", "3660b"),
    "wing_2x3_lr": ("Wedge", "43722 43723"), "wedge_4x2_lr": ("Wedge", "41767 41768"),
    "gear_var": ("Technic", "3647 4019 3649"), "axle_len": ("Technic", "3705 32073"),
    "beam_len": ("Technic", "32523 32316"), "pin_var": ("Technic", "3673 2780"),
    "cone_var": ("Round", "3942c")}
VIEWS = [(30, 25), (115, 25), (250, 25), (335, 25), (10, 55), (100, 55), (235, 55), (325, 55),
         (0, 88), (45, -35), (260, -35), (0, -88)]
BELT = "3001 43722 3649 3023 3842b 3039 32316 41767 3004 3647 2412b 3020".split()  # 3842b, 2412b: not in the catalogue
FLAT = {"3647": 2, "4019": 2, "3649": 2}  # gears lie on their side; the other parts stand as they are modelled
BELT_COLOUR = dict(zip(BELT, (2, 19, 19, 15, 1, 1, 15, 19, 25, 4, 14, 1)))  # what belt() draws
BELT_PX_PER_LDU = 1.75
PLATE, PX_PER_LDU = "3032", 4.1  # Plate 4 x 6, studs up

def rng_for(*key):
    return np.random.default_rng(int(hashlib.md5(" ".join(map(str, (SALT, *key))).encode()).hexdigest()[:8], 16))

def to_bytes(image):
    return (np.clip(image, 0, 1)[..., ::-1] * 255 + 0.5).astype("u1")

def save(path, image, quality, optimize=0):
    (OUT / path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(OUT / path), to_bytes(image), [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimize])

def table(path, columns, rows):
    with open(OUT / path, "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([columns.split(), *rows])

def lights(rng, azimuth=None, vary=1.0):
    """One soft key light and a hemisphere, of a slightly random strength and colour temperature."""
    t, (elevation, key, sky) = rng.uniform(-vary, vary), rng.uniform(-vary, vary, 3)
    key_from = ld.sph(rng.uniform(0, 360) if azimuth is None else azimuth, 55 + 15 * elevation)
    return ld.light_rig(None, key_from, 1 + 0.3 * key, np.array([1 + 0.1 * t, 1, 1 - 0.14 * t]),
                        1.1 + 0.3 * sky, np.array([1 - 0.05 * t, 1, 1 + 0.07 * t]), spread=rng.uniform(0.06, 0.2))

def from_above(r, m, code, pose, yaw, rig):
    """A part that lies on the belt, as the camera over the belt sees it: colour, cover, shadow, box."""
    r.set_mesh(m, code, ld.rot("y", yaw) @ ld.POSES[pose])
    r.set_lights(*rig)
    n = int(np.ceil((2 * m.R * BELT_PX_PER_LDU * 1.55 + 24) / 32) * 32)
    return r.shot(ld.sph(0, 89.5), np.array([0, 0, -1.0]), 12, n, n, pxscale=m.R * BELT_PX_PER_LDU, ground=True)

def laid(shot, ground):
    rgb, a, shade, _ = shot
    return rgb + ((1 - a) * (1 - shade * 0.75))[..., None] * ground

def belt_noise(rng, h, w):
    return cv2.GaussianBlur(rng.normal(0, 1, (h, w, 3)).astype("f4"), (0, 0), 0.6) * 0.011
# ------------------------------------------------------------------ parts: the catalogue and its queries
def template(r, m, part, colour2, rows):
    r.set_mesh(m, 71)
    for v, (az, el) in enumerate(VIEWS):
        eye, up = ld.sph(az, el), np.array([0, 1.0, 0]) if abs(el) < 85 else np.array([0, 0, -1.0])
        key = eye + up * 0.55 + np.cross(up, eye) * 0.5  # over the left shoulder of the camera
        key /= np.linalg.norm(key)
        r.set_lights(*ld.light_rig(None, key, 1.0, (1, 1, 1), 1.45, (1, 1, 1), up=eye + up * 0.6, spread=0.12))
        for code in (71, colour2) if v % 2 == 0 else (71,):
            r.set_colour(code)
            edge = (0.45, 0.45, 0.45, 0.45) if code in (0, 72) else (0, 0, 0, 0.32)
            rgb, a, _, _ = r.shot(eye, up, 22, 160, 160, fill=0.9, edges=edge, worldup=key)
            name = f"templates/{part}/{code}_{v:02d}.jpg"
            save("parts/" + name, rgb + (1 - a[..., None]) * 0.94, 92)
            rows.append([name, part, code, ld.COL[code][0], v, az, el])

def taught(r, m, part, colour2, band, rows):
    """Views as an engineer teaches them under the belt's camera: every 30 degrees, up and down, cut to the part's box.
    Other light, other belt, other angles than in the clip."""
    rng, view = rng_for("taught", part), 100
    for pose in [FLAT[part]] if part in FLAT else [0, 1]:
        for turn in np.arange(0, 360, 30) + rng.uniform(0, 30):
            for code in (71, BELT_COLOUR.get(part, colour2)):
                shot = from_above(r, m, code, pose, turn, lights(rng))
                n, (x1, y1, x2, y2) = len(shot[1]), shot[3]
                x, y = (int(rng.integers(side - n)) for side in (band.shape[1], band.shape[0]))
                image = cv2.blur(laid(shot, band[y : y + n, x : x + n]), (3, 1))
                image += belt_noise(rng, n, n) / 2  # the mean of four frames
                name = f"taught/{part}/{ld.POSE_NAMES[pose]}_{turn:03.0f}_{code}.jpg"
                save("parts/" + name, image[y1:y2, x1:x2], 92, optimize=1)
                rows.append([name, part, code, ld.COL[code][0], view, round(float(turn), 1), 90])
            view += 1

def query(r, m, part, k, rng, rows):
    code, az, el = int(rng.choice(COLOURS)), rng.uniform(0, 360), rng.uniform(30, 78)
    pose = FLAT.get(part, 0)
    r.set_mesh(m, code, ld.POSES[pose])
    r.set_lights(*lights(rng))
    eye, roll = ld.sph(az, el), np.radians(rng.uniform(-12, 12))
    up = np.array([np.sin(roll), np.cos(roll), 0])
    fill = rng.uniform(0.65, 0.88)
    rgb, a, shade, box = r.shot(eye, up, rng.uniform(18, 45), 192, 192, fill=fill, ground=True, expo=rng.uniform(0.9, 1.15),
                                offset=rng.uniform(-0.5, 0.5, 2) * (1 - fill), gloss=rng.uniform(0.5, 1.2))
    scene, kind = background(rng, 192, 192)
    image, info = augment(rng, rgb + ((1 - a) * (1 - shade * rng.uniform(0.55, 0.9)))[..., None] * scene, 0.8)
    corners = np.float32([[[x, y] for x in box[::2] for y in box[1::2]]])
    moved = cv2.perspectiveTransform(corners, info.get("H", np.eye(3)))[0]
    box = np.array([*moved.min(0), *moved.max(0)])
    name = f"queries/{part}/{k}_{code}.jpg"
    save("parts/" + name, image, 90)
    rows.append([name, part, code, ld.COL[code][0], ld.POSE_NAMES[pose], round(az, 1), round(el, 1), kind,
                 *np.clip(box, 0, 192).round().astype(int), 90])

def parts(r):
    listed, templates, taught_views, queries = [], [], [], []
    band = background(rng_for("taught belt"), 540, 2048, "belt")[0] * 0.9 + 0.05
    for group, (category, numbers) in CATALOGUE.items():
        for part in numbers.split():
            m, rng = ld.Mesh(part), rng_for("part", part)
            head = open(f"{ARGS.ldraw}/parts/{part}.dat", errors="replace").read(3000)
            name = re.sub(" +", " ", head.splitlines()[0][2:].strip(" ~=_"))
            about = [(re.search(p, head) or ["", ""])[1].strip() for p in (r"0 Author: *(.*)", r"0 !LICENSE +(.*)")]
            listed.append([part, name, category, group, *(round(float(v), 1) for v in m.size), len(m.T), *about])
            colour2 = int(rng.choice([c for c in COLOURS if c != 71]))
            template(r, m, part, colour2, templates)
            taught(r, m, part, colour2, band, taught_views)
            for k in range(2):
                query(r, m, part, k, rng, queries)
    table("parts/parts.csv",
          "part_num name category confusion_group size_x_ldu size_y_ldu size_z_ldu triangles author license", listed)
    table("parts/templates.csv", "file part_num color_id color view azimuth elevation", templates + taught_views)
    table("parts/queries.csv", "file part_num color_id color pose azimuth elevation background x1 y1 x2 y2 jpeg_q", queries)
    table("parts/colours.csv", "ldraw_code name rgb_hex edge_hex", [[c, *ld.COL[c][:3]] for c in COLOURS])
# ------------------------------------------------------------------ belt: parts that pass under a camera
def belt(r):
    w, h, fps, seconds, speed = 1280, 720, 15, 12, 260.0
    rng, rig = rng_for("belt"), lights(rng_for("belt light"), 215)
    band = background(rng, 540, 4096, "belt")[0] * 0.9 + 0.05
    k = np.linspace(0, 1, 200)[None, :, None]
    band = np.hstack([band[:, 200:-200], band[:, -200:] * (1 - k) + band[:, :200] * k])  # wraps without a seam
    margin, still = 600, np.full((h, w, 3), 0.36, "f4")  # parts come in and go out through the margin
    still[:90] *= np.linspace(0.8, 1.25, 90)[:, None, None]
    still[630:] *= np.linspace(1.2, 0.7, 90)[:, None, None]
    items, t, image = [], 0.1, np.zeros((h, w + 2 * margin, 3), "f4")
    for part in BELT:
        m, code = ld.Mesh(part), int(rng.choice([1, 2, 4, 14, 15, 19, 25, 71]))
        pose = FLAT.get(part, int(rng.random() > 0.75 and part != "3842b"))  # some lie upside down
        assert code == BELT_COLOUR[part]
        shot = from_above(r, m, code, pose, rng.uniform(0, 360), rig)
        box = shot[3]
        items.append((part, shot, box, t, int(rng.uniform(235, 485))))
        t += (box[2] - box[0]) / speed + rng.uniform(0.08, 0.2)
    noise = [belt_noise(rng, h, w) for _ in range(6)]
    rows, encode = [], (f"-y -loglevel error -f rawvideo -pix_fmt bgr24 -s {w}x{h} -r {fps} -i - -c:v libx264 -preset slow "
                        "-threads 1 -crf 26 -g 30 -pix_fmt yuv420p -map_metadata -1 -movflags +faststart")
    (OUT / "belt").mkdir(parents=True, exist_ok=True)
    ffmpeg = subprocess.Popen(["ffmpeg", *encode.split(), str(OUT / "belt/belt.mp4")], stdin=subprocess.PIPE)
    for f in range(fps * seconds):
        image[:, margin:-margin] = still
        image[90:630, margin:-margin] = band[:, (np.arange(w) - round(speed * f / fps)) % band.shape[1]]
        image[84:92], image[628:636] = 0.62, 0.6
        for number, (part, shot, box, t0, lane) in enumerate(items):
            n = len(shot[1])
            left, top = round(speed * (f / fps - t0)) - box[2], lane - n // 2  # enters at t0
            x1, y1, x2, y2 = (np.array(box) + [left, top, left, top]).tolist()
            if -60 < x2 and x1 < w + 60:
                d = image[top : top + n, margin + left : margin + left + n]
                d[:] = laid(shot, d)
            if 1 < x2 and x1 < w - 1:
                rows.append([f, number, part, max(x1, 0), y1, min(x2, w), y2, int(x1 >= 0 and x2 <= w)])
        seen = cv2.blur(image[:, margin:-margin], (3, 1)) * (1 + 0.012 * np.sin(f * 2.1)) + noise[f % 6]
        ffmpeg.stdin.write(to_bytes(seen).tobytes())
    ffmpeg.communicate()
    table("belt/truth.csv", "frame object_id part_num x1 y1 x2 y2 fully_visible", rows)
# ------------------------------------------------------------------ plate: one product, good and with defects
def without_studs(studs):
    """The plate with some of its studs left out, as a new part of the library."""
    lines = open(f"{ARGS.ldraw}/parts/{PLATE}.dat", errors="replace").read().splitlines()
    gone = tuple(f"1 16 {x} 0 {z} " for x, z in studs)
    kept = [line for line in lines if not line.startswith(gone)]
    name = f"{PLATE}-" + "_".join(f"{x}.{z}" for x, z in studs)
    path = ld._index[name + ".dat"] = os.path.join(tempfile.mkdtemp(), name + ".dat")
    pathlib.Path(path).write_text("\n".join(kept))
    return ld.Mesh(name)

def stroke(points, widths):
    """An anti-aliased line through `points` whose width changes on the way: 0..1."""
    big, corners = np.zeros((480 * 4, 640 * 4), "u1"), (np.array(points) * 4).round().astype(int).tolist()
    for p, q, width in zip(corners, corners[1:], widths):
        cv2.line(big, p, q, 255, max(1, round(float(width) * 4)), cv2.LINE_AA)
    return cv2.resize(big, (640, 480), interpolation=cv2.INTER_AREA).astype("f4") / 255

def scratch(rng, image, inside, at):
    n, heading, p, points = int(rng.integers(22, 48)), rng.uniform(0, 2 * np.pi), np.array(at), []
    for _ in range(n):
        points.append(p)
        heading += rng.normal(0, 0.05)
        p = p + 3.4 * np.array([np.cos(heading), np.sin(heading)])
    points = [q - points[n // 2] + np.array(at) for q in points]
    taper = np.sin(np.linspace(0.15, np.pi - 0.15, n - 1)) ** 0.5
    m = stroke(points, taper * rng.uniform(1.3, 2.2)) * inside * np.clip(fbm(rng, 480, 640, 4, 12) * 2.2 - 0.3, 0.35, 1)
    m = cv2.GaussianBlur(m, (0, 0), 0.6)
    dark = cv2.warpAffine(m, np.float32([[1, 0, 1.1], [0, 1, 1.3]]), (640, 480)) * inside
    return image + rng.uniform(0.22, 0.34) * m[..., None] - rng.uniform(0.16, 0.26) * (dark * (1 - m))[..., None], m > 0.2

def stain(rng, image, inside, at):
    yy, xx = np.mgrid[0:480, 0:640].astype("f4")
    angle, (rx, ry) = rng.uniform(0, np.pi), rng.uniform(16, 38, 2)
    z = ((xx - at[0]) + 1j * (yy - at[1])) * np.exp(-1j * angle)  # in the axes of the blotch
    d = np.hypot(z.real / rx, z.imag / ry) + (fbm(rng, 480, 640, 5, 9) - 0.5) * 1.6
    body = np.clip((1 - d) * 4, 0, 1)
    rim = np.exp(-(((d - 0.88) / 0.12) ** 2)) * body
    m = cv2.GaussianBlur((body * (0.65 + 0.5 * (fbm(rng, 480, 640, 5, 20) - 0.5)) + 0.3 * rim) * inside, (0, 0), 0.9)
    tint = [(0.36, 0.24, 0.12), (0.22, 0.2, 0.18), (0.42, 0.34, 0.12)][rng.integers(3)]
    alpha = np.clip(m * rng.uniform(0.4, 0.6), 0, 1)[..., None]
    return image * (1 - alpha) + image * np.array(tint) * 1.5 * alpha, m > 0.15

def crack(rng, image, inside, at):
    m, heading = np.zeros(inside.shape, "f4"), np.arctan2(240 - at[1], 320 - at[0]) + rng.normal(0, 0.4)
    trunks = [(np.array(at), heading, int(rng.integers(10, 18)), rng.uniform(1.5, 2.3))]
    while trunks:  # (start, heading, steps, width); a branch is a thinner and shorter trunk
        p, heading, steps, width = trunks.pop()
        points = [p]
        for _ in range(steps):
            turn = heading + rng.normal(0, 0.55)
            p = p + rng.uniform(4, 11) * np.array([np.cos(turn), np.sin(turn)])
            points.append(p)
            if steps > 8 and rng.random() < 0.16:
                side = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
                trunks.append((p, side, int(rng.integers(3, 7)), width * 0.6))
        m = np.maximum(m, stroke(points, np.linspace(width, 0.5, steps)))
    m = cv2.GaussianBlur(m * inside, (0, 0), 0.45)
    lit = cv2.warpAffine(m, np.float32([[1, 0, -1.2], [0, 1, -1.2]]), (640, 480)) * (1 - m) * inside
    return image * (1 - 0.78 * np.clip(m * 1.1, 0, 1))[..., None] + 0.1 * lit[..., None], m > 0.2

def fixture():
    """Brushed dark metal with a recess and two dowel pins: the same in every picture."""
    rng, h, w = rng_for("fixture"), 480, 640
    grain = cv2.GaussianBlur(rng.normal(0, 1, (h, w)).astype("f4"), (0, 0), sigmaX=14, sigmaY=0.5)
    b = 0.27 + 0.11 * grain / grain.std() * 0.22 + 0.03 * (fbm(rng, h, w, 3, 2) - 0.5)
    recess = np.zeros((h, w), "f4")
    cv2.rectangle(recess, (44, 48), (595, 431), 1, -1)
    b *= 1 - 0.25 * cv2.GaussianBlur(recess, (0, 0), 2.2)
    for centre in ((22, 24), (617, 24), (22, 455), (617, 455)):
        cv2.circle(b, centre, 11, 0.13, -1, cv2.LINE_AA)
        cv2.circle(b, centre, 9, 0.42, -1, cv2.LINE_AA)
    return np.clip(b[..., None] * np.array([0.97, 1.0, 1.05]), 0, 1).astype("f4")

def photograph(r, meshes, ground, key, defect=None):
    """A picture as the camera takes it, and the mask of what is wrong in it (None for a good one)."""
    rng, shots = rng_for("plate", key), []
    rig, turn, move = lights(rng, 320 + rng.uniform(-8, 8), 0.4), rng.uniform(-1, 1), rng.uniform(-2, 2, 2)
    for m in meshes:
        r.set_mesh(m, 1, ld.rot("y", turn))
        r.set_lights(*rig)
        rgb, a, shade, _ = r.shot(ld.sph(0, 89.9), np.array([0, 0, -1.0]), 10, 640, 480, pxscale=m.R * PX_PER_LDU,
                                  offset=move * 2 / np.array([640, 480]), ground=True, gloss=0.8)
        shots.append(rgb + ((1 - a) * (1 - shade * 0.75))[..., None] * ground)
    image, mask = shots[-1], None
    if len(shots) == 2:
        differs = (np.abs(shots[0] - shots[1]).max(2) > 0.035).astype("u1")
        mask = cv2.morphologyEx(differs, cv2.MORPH_CLOSE, np.ones((9, 9), "u1")) > 0
    if defect:
        inside = cv2.erode((a > 0.98).astype("f4"), np.ones((3, 3)))
        half, u = np.array([60, 40]) * PX_PER_LDU, rng.uniform(-0.75, 0.75, 2)
        if defect is crack:  # starts at an edge
            u[rng.integers(2)] = rng.choice([-0.99, 0.99])
        image, mask = defect(rng, image, inside, np.array([320, 240]) + half * u)
    # the camera: exposure, colour temperature, a gradient, focus, noise
    t, (gx, gy), (yy, xx) = rng.uniform(-1, 1), rng.uniform(-0.05, 0.05, 2), np.mgrid[-1:1:480j, -1:1:640j]
    image = image * rng.uniform(0.93, 1.07) * np.array([1 + 0.025 * t, 1, 1 - 0.03 * t]) * (1 + gx * xx + gy * yy)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.45, 0.75))
    return image + rng.normal(0, rng.uniform(0.006, 0.011), image.shape), mask

def plate(r):
    good, ground = ld.Mesh(PLATE), fixture()
    studs = [(x, z) for x in range(-50, 51, 20) for z in range(-30, 31, 20)]
    train, fine = [f"good/{i:03d}.jpg" for i in range(40)], [f"test/good/{i:03d}.jpg" for i in range(16)]
    for name in train + fine:
        save("plate/" + name, photograph(r, [good], ground, name)[0], 92)
    split = {"train": train, "test": [{"file": name, "label": 0} for name in fine]}
    (OUT / "plate/masks").mkdir(exist_ok=True)
    for kind, draw in (("missing_stud", None), ("scratch", scratch), ("stain", stain), ("crack", crack)):
        for i in range(8):
            meshes = [good]
            if not draw:
                pick = rng_for("studs", i).choice(len(studs), 1 + i % 2, replace=False)
                meshes.append(without_studs([studs[k] for k in pick]))
            image, mask = photograph(r, meshes, ground, f"{kind} {i}", draw)
            name, mask_name = f"test/{kind}/{i:02d}.jpg", f"masks/{kind}_{i:02d}.png"
            save("plate/" + name, image, 92)
            cv2.imwrite(str(OUT / "plate" / mask_name), mask.astype("u1") * 255, [cv2.IMWRITE_PNG_COMPRESSION, 9])
            split["test"].append({"file": name, "label": 1, "mask": mask_name, "kind": kind})
    (OUT / "plate/split.json").write_text(json.dumps(split, indent=1) + "\n")

renderer = ld.Renderer()
for what in ARGS.what:
    {"parts": parts, "belt": belt, "plate": plate}[what](renderer)
