import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** The server of README.md, with a garbage collector that has something to do. */
public class Server {
    static final int N = 1 << 20;
    static final int[] words = new int[N];
    static final ConcurrentHashMap<String, String> strings = new ConcurrentHashMap<>();
    static final AtomicLong ticks = new AtomicLong();

    static synchronized String work(int seed, int count) {
        for (int k = 0; k < count; k++) {
            words[(seed * 1664525 + k * 1013904223) >>> 12] += seed + k;
        }
        return "ok";
    }

    static synchronized String digest() {
        int sum = 0;
        for (int i = 0; i < N; i++) {
            sum += words[i] * (2 * i + 1);
        }
        return Integer.toUnsignedString(sum);
    }

    static String answer(String line) {
        String[] p = line.split(" ", 3);
        switch (p[0]) {
            case "put": strings.put(p[1], p[2]); return "ok";
            case "get": return strings.getOrDefault(p[1], "none");
            case "work": return work(Integer.parseUnsignedInt(p[1]), Integer.parseInt(p[2]));
            case "digest": return digest();
            case "ticks": return Long.toString(ticks.get());
            default: return "what?";
        }
    }

    static void serve(Socket s) {
        try (s) {
            s.setTcpNoDelay(true);
            BufferedReader in = new BufferedReader(new InputStreamReader(s.getInputStream(), StandardCharsets.UTF_8));
            OutputStream out = s.getOutputStream();
            for (String line; (line = in.readLine()) != null; ) {
                out.write((answer(line) + "\n").getBytes(StandardCharsets.UTF_8));
            }
        } catch (IOException e) {
            // The client went away.
        }
    }

    /** Garbage of different ages, so that all generations are collected. */
    static void litter() {
        List<byte[]> kept = new ArrayList<>();
        for (int i = 0; ; i++) {
            kept.add(new byte[1000 + i % 5000]);
            if (kept.size() > 2000) {
                kept.subList(0, 1500).clear();
            }
            if (i % 200 == 0) {
                try {
                    Thread.sleep(10);
                } catch (InterruptedException e) {
                    return;
                }
            }
        }
    }

    public static void main(String[] args) throws IOException {
        for (int i = 0; i < N; i++) {
            words[i] = i * (int) 2654435761L;
        }
        Executors.newScheduledThreadPool(2).scheduleAtFixedRate(ticks::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
        new Thread(Server::litter).start();
        ServerSocket door = new ServerSocket(Integer.parseInt(args[1]), 50, InetAddress.getByName(args[0]));
        while (true) {
            Socket s = door.accept();
            new Thread(() -> serve(s)).start();
        }
    }
}
