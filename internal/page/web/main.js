// Asks the daemon every other second, and shows what it says.
import { $, text, attribute } from "./dom.js";
import { begin, call, Gone, Refused } from "./api.js";
import { clock, number, plural } from "./format.js";
import { choosingJobs, groupsOf, runs, showHead, showJobs } from "./jobs.js";
import { choosingPoints, showFacts, showTimeline } from "./timeline.js";
import { listen, showMap } from "./map.js";

const every = 2000, most = 1000, step = 150;

const state = {
  groups: [], group: "", // key of the one that is shown
  list: [], of: "", // checkpoints, the oldest first; and what they were asked for
  total: 0, more: false, limit: step,
  chosen: "", follow: true, // folder of the checkpoint that is shown
  maps: new Map(), map: "", wanted: 0,
  heard: 0, // when the daemon answered last
};

let timer = 0, running = false, stopped = false; // of asking again and again

const groupNow = () => state.groups.find(g => g.key === state.group);
const checkpointNow = () => state.list.find(c => c.dir === state.chosen);

function showConnection(error) {
  const on = !error;
  attribute($("connection"), "class", on ? "on" : "off");
  const since = state.heard ? `; what you see is as of ${clock(new Date(state.heard))}` : "";
  text($("connection-text"), on ? "connected" : error instanceof Gone ? `the daemon does not answer${since}` : `the daemon says: ${error.message}`);
  $("panes").classList.toggle("stale", !on);
}

function lock(why) {
  clearTimeout(timer);
  stopped = true;
  $("panes").hidden = true;
  $("locked").hidden = false;
  text($("locked-why"), why);
  text($("summary"), "");
  attribute($("connection"), "class", "");
  text($("connection-text"), "not connected");
}

function showStatus(status) {
  text($("summary"), `${plural(number(status.jobs), "job")}, ${number(status.jobsRunning)} running · ${plural(number(status.checkpoints), "checkpoint")} · daemon process ${status.pid}`);
}

// show draws everything from the state.
function show() {
  const group = groupNow();
  showJobs(state.groups, state.group, Date.now());
  showHead(group);
  $("content").hidden = !group;
  if (!group) return;
  const some = state.list.length > 0;
  $("timeline-empty").hidden = some;
  text($("timeline-empty"), group.job ? "No checkpoint of this job yet." : "No checkpoints.");
  $("timeline-frame").hidden = $("detail").hidden = $("memory").hidden = $("timeline-keys").hidden = $("follow").hidden = !some;
  text($("timeline-count"), some ? (state.more ? `the newest ${state.list.length} of ${state.total.toLocaleString()}` : plural(state.list.length, "checkpoint")) : "");
  $("older").hidden = !state.more || state.limit >= most;
  attribute($("follow"), "aria-pressed", state.follow);
  if (some) showTimeline(state.list, state.chosen, state.follow);
  showFacts(checkpointNow(), state.list, dir => choosePoint(dir));
}

// load gets the checkpoints of a group, unless they are the same as before.
async function load() {
  const group = groupNow(), sum = group?.sum;
  const of = group ? JSON.stringify([group.key, sum?.checkpoints, sum?.bytes, sum?.newest, state.limit]) : "";
  if (of === state.of) return;
  const request = { pageSize: state.limit, ownerUid: group?.owner ?? 0 };
  if (group?.name) request.job = group.name;
  else request.noJob = true;
  const answer = sum ? await call("CheckpointService/List", request) : {};
  if (group?.key !== state.group) return;
  state.of = of;
  state.list = (answer.checkpoints ?? []).reverse();
  state.total = number(answer.total);
  state.more = Boolean(answer.nextPageToken);
  if (state.follow || !checkpointNow()) {
    state.follow = state.follow || !checkpointNow();
    state.chosen = state.list.at(-1)?.dir ?? "";
  }
}

// loadMap gets the memory map of the chosen checkpoint. While it comes the one before stays.
async function loadMap() {
  const dir = state.chosen, checkpoint = checkpointNow(), ticket = ++state.wanted;
  const key = checkpoint && `${checkpoint.id} ${dir} ${checkpoint.bytes}`;
  if (!checkpoint || key === state.map) {
    $("map-box").classList.remove("busy"); // another one was wanted meanwhile, and is not any more
    return;
  }
  let map = state.maps.get(key);
  if (!map) {
    $("map-box").classList.add("busy");
    try {
      map = await call("CheckpointService/Map", { checkpoint: dir });
    } catch (error) {
      if (error instanceof Gone || error instanceof Refused) throw error;
      map = { checkpoint, notes: [`The memory of this checkpoint cannot be shown: ${error.message}`] };
    }
    if (state.maps.size > 40) state.maps.delete(state.maps.keys().next().value);
    state.maps.set(key, map);
  }
  if (ticket !== state.wanted) return;
  $("map-box").classList.remove("busy");
  state.map = key;
  showMap(map);
  $("map-box").dataset.shows = checkpoint.id;
}

// attempt does something that asks the daemon, and shows how that went.
async function attempt(work) {
  try {
    await work();
    state.heard = Date.now();
    showConnection(null);
  } catch (error) {
    if (error instanceof Refused) {
      lock(error.message);
      return;
    }
    showConnection(error);
  }
}

async function refresh() {
  clearTimeout(timer);
  if (running || stopped) return;
  running = true;
  await attempt(async () => {
    const [status, jobs, groups] = await Promise.all([
      call("SystemService/Status"), call("JobService/List", { pageSize: most }), call("CheckpointService/Groups"),
    ]);
    state.groups = groupsOf(jobs?.jobs ?? [], groups.groups ?? []);
    if (!groupNow()) state.group = (state.groups.find(g => g.sum && runs(g)) ?? state.groups.find(g => g.sum) ?? state.groups[0])?.key ?? "";
    await load();
    showStatus(status);
    $("panes").hidden = false;
    show();
    await loadMap();
  });
  running = false;
  if (!stopped && !document.hidden) timer = setTimeout(refresh, every);
}

async function chooseGroup(key) {
  if (key === state.group) return;
  Object.assign(state, { group: key, follow: true, list: [], of: "", total: 0, more: false, chosen: "", limit: step });
  await attempt(async () => { await load(); show(); await loadMap(); });
}

let soon = 0;

function choosePoint(dir) {
  state.chosen = dir;
  state.follow = false;
  show();
  clearTimeout(soon); // while an arrow key is held, only the last one counts
  soon = setTimeout(() => attempt(loadMap), 90);
}

choosingJobs(chooseGroup);
choosingPoints(choosePoint);
listen();
$("follow").addEventListener("click", () => {
  state.follow = !state.follow;
  if (state.follow) state.chosen = state.list.at(-1)?.dir ?? "";
  show();
  attempt(loadMap);
});
$("older").addEventListener("click", () => {
  state.limit = Math.min(state.limit + step, most);
  state.follow = false;
  attempt(async () => { await load(); show(); });
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
setInterval(() => { if (!stopped && state.groups.length && !document.hidden) showJobs(state.groups, state.group, Date.now()); }, 1000);

// start begins anew with a link, also with one that is put into the address of an open page.
async function start() {
  try {
    await begin();
  } catch (error) {
    return lock(error instanceof Gone ? "The daemon does not answer." : error.message);
  }
  stopped = false;
  $("locked").hidden = true;
  await refresh();
}

addEventListener("hashchange", () => { if (location.hash.length > 20) start(); });
start();
