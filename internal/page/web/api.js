// Calls of the daemon's API, with the token of this tab.

const key = "stasis-token";
let token = sessionStorage.getItem(key);

// Refused: there is no token, or the daemon does not know it.
export class Refused extends Error {}

// Gone: nobody answers.
export class Gone extends Error {}

async function post(path, body, headers = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers },
      cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(15000),
    });
  } catch (error) {
    throw new Gone(error.message);
  }
  return response;
}

// begin takes the code out of the address, and exchanges it for a token.
export async function begin() {
  const code = location.hash.slice(1);
  if (!/^[\w-]{43}$/.test(code)) return;
  history.replaceState(null, "", location.pathname);
  const response = await post("/session", { code });
  if (!response.ok) throw new Refused((await response.text()).trim());
  token = (await response.json()).token;
  sessionStorage.setItem(key, token);
}

// call calls a method, such as JobService/List. What is not there on this daemon gives null.
export async function call(method, request = {}) {
  if (!token) throw new Refused("");
  const response = await post("/stasis.v1." + method, request, { Authorization: "Bearer " + token });
  if (response.ok) return response.json();
  if (response.status === 401) {
    sessionStorage.removeItem(key);
    token = null;
    throw new Refused("This link belongs to a daemon that has ended, or was not used for long.");
  }
  const said = await response.text();
  if (response.status === 404 && !said.startsWith("{")) return null;
  let message = said;
  try { message = JSON.parse(said).message ?? said; } catch { /* it is no JSON */ }
  throw new Error(message);
}
