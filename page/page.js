// The page: a grid of faces, and a walk between the two faces chosen last.
'use strict';

const FACES = 16;
const STEPS = 20; // frames of a walk in each direction
const FRAME_MILLISECONDS = 80;
const DOWNLOAD_WIDTH = 256; // minimum width of a downloaded face, pixels

const [grid, large, link, position, truncation] = ['grid', 'large', 'link', 'position', 'truncation'].map((id) =>
  document.getElementById(id),
);
const show = (id, text) => (document.getElementById(id).textContent = text);
const onClick = (id, action) => document.getElementById(id).addEventListener('click', action);

let faces; // latent of each face, and the number that selects its attributes
let drawing; // token of the newest drawAll(); older calls stop
let chosen = []; // indices of at most two faces
let frames = []; // frames of the walk, or of the chosen face; drawn when first shown
let newestWalker; // token of the newest walk(); older calls stop
let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;

function makeCanvas(canvas, scale = 1, columns = 1) {
  canvas.width = GENERATOR.width * scale * columns;
  canvas.height = GENERATOR.height * scale * columns;
  return canvas;
}

function makeGrid() {
  for (let number = 1; number <= FACES; number++) {
    const button = document.createElement('button');
    button.type = 'button';
    button.setAttribute('aria-label', `Face ${number}`);
    button.append(makeCanvas(document.createElement('canvas')));
    button.addEventListener('click', () => choose(number - 1));
    grid.append(button);
  }
}

// A switch for each attribute: any, no, yes.
function makeAttributes() {
  GENERATOR.attributes.forEach((name, index) => {
    const fieldset = document.createElement('fieldset');
    fieldset.innerHTML = '<legend></legend><div class="segments"></div>';
    fieldset.firstChild.textContent = name.replaceAll('_', ' ');
    for (const [text, value] of [['any', ''], ['no', '0'], ['yes', '1']]) {
      const label = document.createElement('label');
      label.innerHTML = `<input type="radio" name="attribute${index}" value="${value}"><span>${text}</span>`;
      label.firstChild.checked = !value;
      label.firstChild.addEventListener('change', drawAll);
      fieldset.lastChild.append(label);
    }
    document.getElementById('attributes').append(fieldset);
  });
}

// The latent of a face, truncated as the slider is set, with its condition as the switches are set.
function currentLatent({ latent, u }) {
  const answer = (index) => document.querySelector(`[name=attribute${index}]:checked`).value;
  const wanted = GENERATOR.attributes.map((_, index) => answer(index));
  return [...latent.map((value) => value * truncation.valueAsNumber), ...(wanted.length ? conditionOf(u, wanted) : [])];
}

function newFaces(seed) {
  const random = randomNumbers(seed);
  faces = Array.from({ length: FACES }, () => ({ latent: sampleLatent(random), u: random() }));
  link.href = `#${seed}`;
  chosen = [];
  drawAll();
}

async function drawAll() {
  const current = (drawing = {});
  show('status', 'Drawing…');
  showStage();
  for (const [index, face] of faces.entries()) {
    const image = await drawFace(currentLatent(face));
    if (drawing !== current) return;
    grid.children[index].firstChild.getContext('2d').putImageData(image, 0, 0);
    await tf.nextFrame();
    if (drawing !== current) return;
  }
  show('status', `${FACES} faces`);
}

function choose(index) {
  chosen = chosen.includes(index) ? chosen.filter((other) => other !== index) : [...chosen, index].slice(-2);
  showStage();
}

function showStage() {
  for (const [index, button] of [...grid.children].entries()) {
    button.setAttribute('aria-pressed', chosen.includes(index));
  }
  const [first, second] = chosen.map((index) => index + 1);
  large.hidden = document.getElementById('download-face').hidden = !first;
  document.getElementById('walk').hidden = !second;
  frames = [];
  position.value = 0;
  if (second) {
    show('caption', `A walk between face ${first} and face ${second}`);
    large.setAttribute('aria-label', `A face between face ${first} and face ${second}`);
  } else if (first) {
    show('caption', 'Choose a second face to walk between them');
    large.setAttribute('aria-label', `Face ${first}`);
  } else {
    show('caption', 'Choose a face to enlarge it, and a second face to walk between them');
  }
  if (first) {
    walk(frames);
  }
}

// Show the frame at the slider's position. current: the frames of the walk that is shown.
async function showFrame(current) {
  const step = position.valueAsNumber;
  const [start, end = start] = chosen.map((index) => currentLatent(faces[index]));
  current[step] ??= await drawFace(interpolate(start, end, step / STEPS));
  if (frames === current) {
    large.getContext('2d').putImageData(current[step], 0, 0);
  }
}

// Play the walk back and forth until other faces are chosen or it is paused.
async function walk(current) {
  const walker = (newestWalker = {});
  const walks = () => playing && walker === newestWalker && frames === current && chosen.length === 2;
  let direction = 1;
  await showFrame(current);
  while (walks()) {
    await new Promise((resolve) => setTimeout(resolve, FRAME_MILLISECONDS));
    if (!walks()) return;
    const step = position.valueAsNumber;
    direction = step === 0 ? 1 : step === STEPS ? -1 : direction;
    position.value = step + direction;
    await showFrame(current);
  }
}

function setPlaying(value) {
  playing = value;
  show('play', playing ? 'Pause' : 'Play');
}

// Download canvases side by side as one PNG, each pixel enlarged.
function download(canvases, name) {
  const columns = Math.sqrt(canvases.length);
  const scale = Math.ceil(DOWNLOAD_WIDTH / GENERATOR.width);
  const sheet = makeCanvas(document.createElement('canvas'), scale, columns);
  const [width, height] = [sheet.width / columns, sheet.height / columns];
  const context = sheet.getContext('2d');
  context.imageSmoothingEnabled = false;
  canvases.forEach((canvas, i) => {
    context.drawImage(canvas, width * (i % columns), height * Math.floor(i / columns), width, height);
  });
  sheet.toBlob((blob) => {
    const file = document.createElement('a');
    file.href = URL.createObjectURL(blob);
    file.download = name;
    file.click();
    URL.revokeObjectURL(file.href);
  });
}

function seedOfLink() {
  const seed = /^#\d{1,10}$/.test(location.hash) ? Number(location.hash.slice(1)) : 2 ** 32;
  return seed < 2 ** 32 ? seed : Math.floor(Math.random() * 2 ** 32);
}

makeGrid();
makeAttributes();
makeCanvas(large);
position.max = STEPS;
setPlaying(playing);

onClick('new-faces', () => {
  history.replaceState(null, '', location.href.split('#')[0]); // so that a reload draws new faces, too
  newFaces(seedOfLink());
});
truncation.addEventListener('input', () => {
  show('truncation-value', truncation.valueAsNumber.toFixed(2));
  drawAll();
});
position.addEventListener('input', () => {
  setPlaying(false);
  showFrame(frames);
});
onClick('play', () => {
  setPlaying(!playing);
  walk(frames);
});
onClick('download-all', () => download([...grid.querySelectorAll('canvas')], 'faces.png'));
onClick('download-face', () => download([large], 'face.png'));
addEventListener('unhandledrejection', (event) => show('status', `Drawing failed: ${event.reason.message}`));
addEventListener('hashchange', () => {
  if (location.hash !== link.hash) newFaces(seedOfLink());
});
newFaces(seedOfLink());
