// Two views of one object that turn together. `element`, `props` and `watch` come from Gradio's HTML block.
const CAMERA = "30deg 72deg 2.45m";
const TITLES = { input: "the input", rebuilt: "the rebuilt mesh", codes: "the codes" };
const screens = { input: part("[data-screen=input]"), second: part("[data-screen=second]") };
const viewers = {};
let leader = null;

function part(selector) {
  return element.querySelector(selector);
}

function viewer(place) {
  if (viewers[place]) return viewers[place];
  const made = document.createElement("model-viewer");
  const settings = {
    "camera-controls": "", "camera-orbit": CAMERA, "camera-target": "0m 0m 0m", "field-of-view": "32deg",
    "min-camera-orbit": "auto auto 0.7m", "max-camera-orbit": "auto auto 5m", "interaction-prompt": "none",
    "shadow-intensity": "0.35", "shadow-softness": "1", exposure: "1.05", "touch-action": "pan-y", loading: "eager",
  };
  for (const [name, value] of Object.entries(settings)) made.setAttribute(name, value);
  made.addEventListener("camera-change", (event) => {
    if (event.detail.source === "user-interaction") leader = place;
    if (leader !== place) return;
    const other = viewers[place === "input" ? "second" : "input"];
    if (!other) return;
    other.cameraOrbit = made.getCameraOrbit().toString();
    other.cameraTarget = made.getCameraTarget().toString();
    other.fieldOfView = `${made.getFieldOfView()}deg`;
    other.jumpCameraToGoal();
  });
  made.addEventListener("error", () => say(place, "This view can't be drawn. Does the browser have WebGL?"));
  viewers[place] = made;
  return made;
}

function say(place, text) {
  delete viewers[place];
  const words = document.createElement("p");
  words.className = "empty";
  words.textContent = text;
  screens[place].replaceChildren(words);
}

function show(place, url, what) {
  if (!url) {
    if (viewers[place]) say(place, "");
    return;
  }
  const shown = viewer(place);
  if (!shown.isConnected) screens[place].replaceChildren(shown);
  if (shown.getAttribute("src") !== url) {
    const other = viewers[place === "input" ? "second" : "input"];
    if (other && other.isConnected && other.loaded) shown.cameraOrbit = other.getCameraOrbit().toString();
    shown.setAttribute("src", url);
  }
  shown.setAttribute("alt", `${props.value.name}: ${TITLES[what]}. Arrow keys turn both views.`);
}

function update() {
  const value = props.value || {};
  const wanted = part("input[name=second-view]:checked").value;
  const second = value[wanted] ? wanted : value.codes ? "codes" : null;
  show("input", value.input, "input");
  show("second", second && value[second], second);
  part("[data-note=input]").textContent = value.input_note || "";
  part("[data-note=second]").textContent = (second && value[`${second}_note`]) || "";
  if (wanted === "rebuilt" && second === "codes") part("[data-note=second]").textContent = "its codes; rebuilding …";
  for (const legend of element.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== second;
  if (value.scale) {
    part("[data-scale=low]").textContent = value.scale.low;
    part("[data-scale=top]").textContent = value.scale.top;
    part(".bar").setAttribute("aria-label", `colours from ${value.scale.low} to ${value.scale.top}`);
  }
}

element.addEventListener("change", (event) => {
  if (event.target.name === "second-view") update();
});
watch("value", update);
update();
